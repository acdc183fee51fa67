"""Random small modules and plans: formulas over (batch, tokens, features) between an input layer and a loss."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .against_eager import Batch

Formula = Callable[..., Tensor]


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def _attention(x: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, *, causal: bool = True) -> Tensor:
    mixed = F.scaled_dot_product_attention(_heads(x @ q), _heads(x @ k), _heads(x @ v), is_causal=causal)
    return mixed.transpose(1, 2).flatten(2) @ o


def _masked_attention(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
    scores = (x @ q) @ (x @ k).transpose(1, 2)
    ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, float("-inf")).softmax(-1) @ x


def _edited(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = y[:, -1] * 2
    y[..., 1:].mul_(0.5)
    return y.add_(1.0)


def _put(x: Tensor, w: Tensor) -> Tensor:
    return x.index_put((torch.zeros(1, dtype=torch.long), torch.tensor([1])), w, accumulate=True)


FORMULAS: dict[str, tuple[str, Formula]] = {
    "linear": ("dd d", lambda x, w, b: torch.tanh(x @ w + b)),
    "residual mlp": ("dh h hd", lambda x, up, b, down: x + F.gelu(x @ up + b) @ down),
    "gated mlp": ("dh dh hd", lambda x, gate, up, down: x + (F.silu(x @ gate) * (x @ up)) @ down),
    "fused gate": ("dk hd", lambda x, both, down: F.glu(x @ both) @ down),
    "causal attention": ("dd dd dd dd", _attention),
    "attention": ("dd dd dd dd", lambda x, *w: x + _attention(x, *w, causal=False)),
    "masked attention": ("dd dd", _masked_attention),
    "layer norm": ("d d", lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b)),
    "norm of tokens and features": ("td", lambda x, w: F.layer_norm(x, x.shape[-2:], w)),
    "rms norm": ("d", lambda x, w: F.rms_norm(x, x.shape[-1:], w)),
    "group norm": ("d", lambda x, w: F.group_norm(x.transpose(1, 2), 2, w).transpose(1, 2)),
    "standardised": ("d", lambda x, w: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.1) * w),
    "normalised": ("", lambda x: F.normalize(x, dim=-1)),
    "convolution": ("dd3", lambda x, w: F.conv1d(x.transpose(1, 2), w, padding=1).transpose(1, 2)),
    "depthwise convolution": (
        "d13",
        lambda x, w: F.conv1d(x.transpose(1, 2), w, padding=1, groups=x.shape[-1]).transpose(1, 2),
    ),
    "image convolution": ("2133", lambda x, w: F.conv2d(x.unsqueeze(1), w, padding=1).amax(1)),
    "pooled": ("", lambda x: F.avg_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2)),
    "contraction": ("dd3", lambda x, w: torch.einsum("btd,dek->btek", x, w).logsumexp(-1)),
    "tokens mixed": ("tt", lambda x, w: torch.einsum("btd,ts->bsd", x, w)),
    "lower triangle": ("tt", lambda x, w: torch.tril(w) @ x),
    "scale and shift": ("d t1", lambda x, w, b: x * w + b),
    "outer product": ("t1 1d", lambda x, a, b: x * (a @ b)),
    "broadcast product": ("d", lambda x, w: (x.unsqueeze(-1) * w).sum(-2) / x.shape[-1]),
    "two products": ("2dd", lambda x, w: torch.stack([x @ w[0], x @ w[1]]).prod(0).tanh()),
    "one of three": ("3td", lambda x, w: x * w[1] + w.sum(0)),
    "rows of a table": ("7d", lambda x, w: x + w[torch.arange(x.shape[1]) % 7]),
    "embedding of the largest": ("kd", lambda x, w: x + F.embedding(x.argmax(-1) % w.shape[0], w)),
    "gathered": ("", lambda x: x + x.gather(-1, (torch.arange(x.shape[-1]) * 3 % x.shape[-1]).expand(x.shape))),
    "scattered": (
        "d",
        lambda x, w: torch.zeros_like(x).scatter_add(-1, (torch.arange(x.shape[-1]) // 2).expand(x.shape), x) * w,
    ),
    "put": ("1d", _put),
    "parametric relu": ("d", lambda x, w: F.prelu(x.transpose(1, 2), w).transpose(1, 2)),
    "weight norm": ("dd", lambda x, w: x @ (w / w.norm(dim=0, keepdim=True))),
    "padded": ("kd", lambda x, w: F.pad(x, (0, w.shape[0] - x.shape[-1])) @ w),
    "joined": ("dd dd", lambda x, a, b: torch.cat([x, x.flip(1)], -1) @ torch.cat([a, b])),
    "rolled": ("", lambda x: x.roll(1, 1) + x),
    "running sum over tokens": ("d", lambda x, w: x.cumsum(1) * w / x.shape[1]),
    "running sum over features": ("", lambda x: x.cumsum(-1) / x.shape[-1]),
    "sorted": ("", lambda x: x.sort(-1).values + x),
    "two largest": ("", lambda x: x + x.topk(2, -1).values.sum(-1, keepdim=True)),
    "edited in place": ("", _edited),
    "windows": ("d", lambda x, w: x.unfold(1, 2, 1).mean(-1).repeat(1, 2, 1)[:, : x.shape[1]] * w),
    "by sign": ("d", lambda x, w: torch.where(x > 0, x * w, x.clamp(max=0).exp() - 1)),
    "less the largest": ("", lambda x: x - x.amax(-1, keepdim=True)),
    "less the smallest token": ("", lambda x: x - x.min(1, keepdim=True).values),
    "less the mean token": ("", lambda x: x - x.mean(1, keepdim=True)),
    "over the variance": ("", lambda x: x / (x.var(1, keepdim=True) + 1)),
    "over the largest": ("", lambda x: x / (x.abs().amax((1, 2), keepdim=True) + 0.1)),
    "softmax over tokens": ("", lambda x: x.softmax(1) * x),
    "softmax over both": ("", lambda x: x.flatten(1).softmax(-1).view_as(x)),
    "rows as a batch": ("", lambda x: x.flatten(0, 1).tanh().view_as(x)),
    "parts exchanged": ("", lambda x: torch.cat([x[:, 1:], 2 * x[:, :1]], 1)),
    "clamped": ("", lambda x: x.clamp(-1, 1) + x.abs().mean((1, 2), keepdim=True)),
    "product": ("", lambda x: x * x.prod(-1, keepdim=True).tanh()),
    "distances": ("", lambda x: torch.cdist(x, x.detach()).mean(-1, keepdim=True) + x),
    "soft plus": ("d", lambda x, w: F.softplus(x * w)),
}
"""Name: the shapes of its parameters, a letter or digit for each dim, and the formula."""
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten()),
    "smoothed": lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten(), label_smoothing=0.1),
    "sum": lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"),
    "squares": lambda logits, y: F.mse_loss(logits, F.one_hot(y.clamp_min(0), logits.shape[-1]).to(logits)),
    "absolute": lambda logits, y: F.smooth_l1_loss(logits, logits.detach().roll(1, -1) * 0.5),
    "binary": lambda logits, y: F.binary_cross_entropy_with_logits(logits, (y > 1)[..., None].expand_as(logits) * 1.0),
    "log-sum": lambda logits, y: logits.logsumexp(-1).mean(),
}
REGIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "near one": lambda x: x,
    "tiny": lambda x: x * 1e-6,
    "large": lambda x: x * 30,
    "negative": lambda x: -x.abs() - 0.1,
    "ties": lambda x: (x * 2).round() / 2,
}


class Formulas(nn.Module):
    """Formulas in a row; the input is features, or tokens of a vocabulary."""

    def __init__(self, dice: random.Random, batch: int, tokens: int, width: int, words: int) -> None:
        super().__init__()
        sizes = {"d": width, "t": tokens, "h": dice.choice([3, 5, 8]), "b": batch}
        sizes["k"] = 2 * sizes["h"] if sizes["h"] * 2 > width else width + 1
        self.names = dice.choices(list(FORMULAS), k=dice.choice([1, 2, 2, 3]))
        self.loss = dice.choice([*LOSSES, ""])
        self.reads_tokens = dice.random() < 0.4
        self.first: nn.Module = nn.Embedding(words, width) if self.reads_tokens else nn.Linear(width, width)
        self.weights = nn.ModuleList(
            nn.ParameterList(_parameter([sizes.get(letter) or int(letter) for letter in shape]) for shape in shapes)
            for shapes in (FORMULAS[name][0].split() for name in self.names)
        )
        self.head = nn.Linear(width, words, bias=dice.random() < 0.5)
        if self.reads_tokens and dice.random() < 0.5:
            self.head.weight = self.first.weight
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.first(x)
        for name, weights in zip(self.names, self.weights, strict=True):
            h = FORMULAS[name][1](h, *weights)
        logits: Tensor = self.head(h)
        return LOSSES[self.loss](logits, y) if self.loss else logits


def _parameter(shape: list[int]) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


@dataclass(frozen=True)
class RandomCase:
    """A module, batches of it, and a plan."""

    name: str
    make: Callable[[], nn.Module]
    batches: list[Batch]
    plan: str


def random_case(seed: int) -> RandomCase:
    """The case of a seed."""
    dice = random.Random(seed)
    batch, tokens, width, words = (dice.choice(sizes) for sizes in ([2, 4, 6, 3], [3, 4, 5, 6], [4, 6, 10], [5, 7, 8]))
    state = dice.getstate()

    def make() -> Formulas:
        torch.manual_seed(seed)
        dice.setstate(state)
        return Formulas(dice, batch, tokens, width, words)

    module = make()
    regimes = dice.sample(list(REGIMES), 2)
    batches = [_batch(module, batch, tokens, width, words, regime) for regime in regimes]
    plan = _plan(dice, module, batch, tokens)
    return RandomCase(f"{seed}: {module.names}, {module.loss or 'logits'}, {regimes}", make, batches, plan)


def _batch(module: Formulas, batch: int, tokens: int, width: int, words: int, regime: str) -> Batch:
    x = torch.randn(batch, tokens, width, dtype=torch.float64)
    inputs = torch.randint(words, (batch, tokens)) if module.reads_tokens else REGIMES[regime](x)
    targets = torch.randint(words, (batch, tokens))
    return inputs, targets.masked_fill(torch.rand(batch, tokens) < 0.15, -100)


def _plan(dice: random.Random, module: Formulas, batch: int, tokens: int) -> str:
    mesh = {axis: dice.choice([2, 2, 3]) for axis in dice.sample(["dp", "tp", "cp"], dice.choice([1, 1, 2, 2, 3]))}
    while prod(mesh.values()) > 8:
        mesh[max(mesh, key=lambda axis: mesh[axis])] = 2
    pipeline = module.loss and dice.random() < 0.2 and prod(mesh.values()) <= 4
    microbatches = dice.choice([1, 2]) if pipeline else 1
    left = {0: batch // microbatches, 1: tokens}
    inputs = []
    for axis in sorted(mesh, key=lambda axis: axis != "dp"):
        dims = [dim for dim in (0, 0, 1) if left[dim] % mesh[axis] == 0]
        if dims and (axis == "dp" or dice.random() < 0.3):
            dim = dice.choice(dims)
            left[dim] //= mesh[axis]
            inputs.append(f"shard inputs dim {dim} over {axis}")
        elif axis == "dp":
            mesh["ep"] = mesh.pop("dp")  # an axis named dp would shard the batch
    axes = {"pp": 2, **mesh} if pipeline else mesh
    lines = [f"mesh ({', '.join(f'{axis}={size}' for axis, size in axes.items())})"]
    if pipeline:
        schedule = dice.choice(["1f1b", "gpipe", "zb-h1"])
        lines.append(f"pipeline over pp {{ schedule {schedule}  microbatches {microbatches} }}")
    lines += inputs
    for name, parameter in module.named_parameters():
        if dice.random() < 0.55:
            lines.append(f'shard "{name}" dim {dice.randrange(parameter.dim())} over {dice.choice(list(mesh))}')
    return "\n".join(lines)
