"""Small modules, each for one thing that a compiler can get wrong; extents are odd where possible.

Every module has linear layers `up` and `down` or the like, so that plans may shard any parameter on any dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Result = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Forward = Callable[..., Result]
BATCH, TOKENS, IN, INNER, HEADS, HEAD, CLASSES = 4, 5, 6, 7, 3, 4, 11
WIDTH = HEADS * HEAD


class Small(nn.Module):
    """Layers by name, and a forward that is given them."""

    def __init__(self, run: Forward, layers: dict[str, nn.Module | nn.Parameter]) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Result:
        return self.run(self, x)


class SmallWithLabels(Small):
    """The same for two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Result:  # type: ignore[override]
        return self.run(self, x, y)


Made = tuple[nn.Module, dict[str, Tensor]]
MODULES: dict[str, Callable[[], Made]] = {}
"""A module and its inputs, by name."""


def _case(inputs: Callable[[], tuple[Tensor, ...]], **layers: Callable[[], Any]) -> Callable[[Forward], Forward]:
    """Register a forward; layers are made anew for each use."""

    def register(run: Forward) -> Forward:
        def make() -> Made:
            example = inputs()
            kind = Small if len(example) == 1 else SmallWithLabels
            module = kind(run, {name: layer() for name, layer in layers.items()})
            return module, dict(zip(("x", "y"), example, strict=False))

        MODULES[run.__name__] = make
        return run

    return register


def _rows() -> tuple[Tensor, ...]:
    return (torch.zeros(BATCH, IN),)


def _sequences() -> tuple[Tensor, ...]:
    return (torch.zeros(BATCH, TOKENS, IN),)


def _wide() -> tuple[Tensor, ...]:
    return (torch.zeros(BATCH, TOKENS, WIDTH),)


def _images() -> tuple[Tensor, ...]:
    return (torch.zeros(BATCH, 3, TOKENS, IN),)


def _indices() -> tuple[Tensor, ...]:
    return (torch.zeros(BATCH, TOKENS, dtype=torch.int64),)


def _labelled() -> tuple[Tensor, ...]:
    return (*_indices(), *_indices())


def _linear(into: int, out: int) -> Callable[[], nn.Linear]:
    return lambda: nn.Linear(into, out)


_MLP: dict[str, Callable[[], Any]] = {"up": _linear(IN, INNER), "down": _linear(INNER, IN)}
_PROJECTIONS: dict[str, Callable[[], Any]] = {
    name: _linear(WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
}
_LANGUAGE: dict[str, Callable[[], Any]] = {
    "wte": lambda: nn.Embedding(CLASSES, IN, padding_idx=3),
    "head": _linear(IN, CLASSES),
}


@_case(lambda: (torch.zeros(BATCH, IN), torch.zeros(BATCH, IN)), **_MLP)
def mean_squares(m: Any, x: Tensor, y: Tensor) -> Result:
    return F.mse_loss(m.down(torch.relu(m.up(x))), y)


@_case(lambda: (torch.zeros(BATCH, IN), torch.zeros(BATCH, IN)), **_MLP)
def other_losses(m: Any, x: Tensor, y: Tensor) -> Result:
    h = m.down(m.up(x))
    summed = F.huber_loss(h, y, reduction="sum") + F.mse_loss(h, y, reduction="none").pow(2).sum()
    return summed + F.smooth_l1_loss(h, y) + F.l1_loss(h, y) + F.binary_cross_entropy_with_logits(h, y.sigmoid())


@_case(_sequences, **_MLP)
def signs(m: Any, x: Tensor) -> Result:
    h = m.up(x)
    return (h.sgn() * 3 + h).pow(2).mean()


@_case(_sequences, **_MLP)
def means(m: Any, x: Tensor) -> Result:
    h = m.up(x)
    return (
        h.pow(2).mean() + h.mean(0).pow(2).sum() + h.mean((1, 2)).exp().sum() + h.mean(-1, keepdim=True).mul(h).mean()
    )


@_case(_rows, **_MLP)
def spread(m: Any, x: Tensor) -> Result:
    h = m.up(x)
    return h.var(0).sum() + h.std(1).sum() + h.norm() + F.normalize(h, dim=0).pow(3).sum()


@_case(_rows, **_MLP)
def extremes(m: Any, x: Tensor) -> Result:
    h = m.up(x)
    return h.max(-1).values.sum() + h.amax(0).sum() + h.max() + h.min(0).values.sum() + h.topk(3, -1).values.sum()


@_case(_rows, **_MLP)
def results_of_all_kinds(m: Any, x: Tensor) -> Result:
    h = m.up(x)
    return {"hidden": h, "best": h.argmax(-1), "loss": m.down(h).pow(2).sum(), "order": h.sort(0).indices}


@_case(_rows, **_MLP)
def a_layer_called_three_times(m: Any, x: Tensor) -> Result:
    for _ in range(3):
        x = m.down(torch.tanh(m.up(x)))
    return x.pow(2).sum()


@_case(_rows, **_MLP)
def a_weight_used_both_ways(m: Any, x: Tensor) -> Result:
    return (m.down(m.up(x)) @ m.up.weight.t()).pow(2).sum() + F.linear(x, m.up.weight).sum()


@_case(_rows, up=_linear(IN, 10), down=_linear(5, IN))
def parts_and_wholes(m: Any, x: Tensor) -> Result:
    a, b = m.up(x).chunk(2, -1)
    c, d = m.up(x).split([3, 7], -1)
    gated = m.down(a * torch.sigmoid(b)).pow(2).sum()
    return gated + torch.stack([a, b]).prod(0).sum() + torch.cat([c, d, a], -1).pow(2).sum() + torch.cat([x, x]).sum()


@_case(_sequences, **_MLP)
def slices_and_shifts(m: Any, x: Tensor) -> Result:
    h = m.up(x)
    moved = h.roll(1, 1) * h + h.flip(0) * h + F.pad(h, (0, 1))[..., 1:]
    return moved.pow(2).sum() + h[:, -1].pow(2).sum() + h[1:3].sum() + h[..., ::2].pow(2).sum() + h.cumsum(0).sum()


@_case(_sequences, up=_linear(IN, WIDTH), w=lambda: nn.Parameter(torch.zeros(HEADS, HEAD, TOKENS)))
def einsum(m: Any, x: Tensor) -> Result:
    return torch.einsum("bshd,hde->bse", m.up(x).view(BATCH, TOKENS, HEADS, HEAD), m.w).pow(2).sum()


@_case(_wide, **_PROJECTIONS)
def attention_written_out(m: Any, x: Tensor) -> Result:
    q, k, v = (p(x).view(BATCH, TOKENS, HEADS, HEAD).transpose(1, 2) for p in (m.q_proj, m.k_proj, m.v_proj))
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=x.device).tril()
    weights = (q @ k.transpose(-1, -2) / 2).masked_fill(~causal, float("-inf")).softmax(-1)
    return m.o_proj((weights @ v).transpose(1, 2).reshape(BATCH, TOKENS, WIDTH)).pow(2).sum()


@_case(lambda: (*_wide(), torch.zeros(BATCH, TOKENS, TOKENS)), **_PROJECTIONS)
def attention_with_a_mask(m: Any, x: Tensor, y: Tensor) -> Result:
    q, k, v = (p(x).view(BATCH, TOKENS, HEADS, HEAD).transpose(1, 2) for p in (m.q_proj, m.k_proj, m.v_proj))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=y[:, None])
    return m.o_proj(attended.transpose(1, 2).reshape(BATCH, TOKENS, WIDTH)).pow(2).sum()


@_case(_wide, attention=lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
def torch_s_own_attention(m: Any, x: Tensor) -> Result:
    attended, _ = m.attention(x, x, x)
    return attended.pow(2).mean()


@_case(_wide, layer=lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True))
def torch_s_own_encoder_layer(m: Any, x: Tensor) -> Result:
    return m.layer(x).pow(3).mean()


@_case(_images, up=lambda: nn.Conv2d(3, 6, 3, padding=1), norm=lambda: nn.GroupNorm(2, 6), down=_linear(6, 3))
def convolution(m: Any, x: Tensor) -> Result:
    return m.down(F.max_pool2d(F.relu(m.norm(m.up(x))), 2).mean((2, 3))).pow(2).sum()


@_case(
    _images,
    up=lambda: nn.Conv2d(3, 6, 3, padding=1, bias=False),
    norm=lambda: nn.BatchNorm2d(6),
    groups=lambda: nn.Conv2d(6, 12, 3, padding=1, groups=3),
    down=lambda: nn.ConvTranspose2d(12, 8, 2, stride=2),
    rms=lambda: nn.GroupNorm(4, 8, affine=False),
)
def images(m: Any, x: Tensor) -> Result:
    h = m.groups(F.interpolate(F.silu(m.norm(m.up(x))), scale_factor=2.0, mode="bilinear"))
    h = F.pixel_shuffle(m.rms(m.down(F.avg_pool2d(h, 2))), 2)
    return F.pad(h, (1, 1, 1, 1), mode="reflect").pow(2).mean() + F.interpolate(h, scale_factor=2.0).pow(3).mean()


@_case(_sequences, up=lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(TOKENS, 4, 3)), down=_linear(2, IN))
def windows(m: Any, x: Tensor) -> Result:
    h = F.glu(m.up(x).unfold(2, 3, 1).sum(-1), 1)
    return m.down(h).pow(2).sum() + F.leaky_relu(h).sum() + F.hardswish(h).sum() + F.logsigmoid(h).sum()


@_case(_sequences, norm=lambda: nn.RMSNorm(IN), **_MLP)
def a_norm_without_an_epsilon(m: Any, x: Tensor) -> Result:
    kept = torch.empty_strided((IN, BATCH), (1, IN), dtype=x.dtype, device=x.device)
    return m.down(m.up(m.norm(x))).pow(2).sum() + kept.copy_(m.norm(x)[:, 0].t()).pow(3).sum()


@_case(_rows, **_MLP)
def floats_of_integers(m: Any, x: Tensor) -> Result:
    rates = torch.exp(torch.arange(IN, device=x.device) * -0.3) + torch.arange(0, 0.6, 0.1, device=x.device)
    return m.down(m.up(x * rates)).pow(2).sum()


@_case(_rows, up=_linear(IN, INNER), norm=lambda: nn.BatchNorm1d(INNER), down=_linear(INNER, IN))
def batch_norm(m: Any, x: Tensor) -> Result:
    return m.down(m.norm(m.up(x))).pow(2).sum()


@_case(_sequences, cell=lambda: nn.GRUCell(IN, INNER), down=_linear(INNER, IN))
def recurrence(m: Any, x: Tensor) -> Result:
    h = x.new_zeros(BATCH, INNER)
    for t in range(3):
        h = m.cell(x[:, t], h)
    return m.down(h).pow(2).sum()


@_case(_rows, gate=_linear(IN, 3), w=lambda: nn.Parameter(torch.zeros(3, IN, INNER)), down=_linear(INNER, IN))
def experts(m: Any, x: Tensor) -> Result:
    chances = m.gate(x).softmax(-1)
    best, which = chances.topk(2, -1)
    mixed = torch.einsum("bd,edf->bef", x, m.w) * torch.zeros_like(chances).scatter(1, which, best)[..., None]
    return m.down(mixed.sum(1)).pow(2).sum() + chances.mean(0).pow(2).sum()


@_case(_labelled, **_LANGUAGE)
def cross_entropy(m: Any, x: Tensor, y: Tensor) -> Result:
    return F.cross_entropy(m.head(m.wte(x)).flatten(0, 1), y.flatten())


@_case(_labelled, **_LANGUAGE)
def cross_entropy_of_shifted_labels(m: Any, x: Tensor, y: Tensor) -> Result:
    return F.cross_entropy(m.head(m.wte(x))[:, :-1].reshape(-1, CLASSES), y[:, 1:].reshape(-1), reduction="sum")


@_case(_labelled, **_LANGUAGE)
def cross_entropy_of_each(m: Any, x: Tensor, y: Tensor) -> Result:
    return F.cross_entropy(m.head(m.wte(x)).transpose(1, 2), y, reduction="none").pow(2).sum()


@_case(_labelled, **_LANGUAGE)
def cross_entropy_smoothed(m: Any, x: Tensor, y: Tensor) -> Result:
    return F.cross_entropy(m.head(m.wte(x)).flatten(0, 1), y.flatten(), label_smoothing=0.1)


@_case(_labelled, **_LANGUAGE)
def cross_entropy_weighted(m: Any, x: Tensor, y: Tensor) -> Result:
    weights = torch.linspace(0.5, 2, CLASSES, device=x.device, dtype=m.head.weight.dtype)
    return F.cross_entropy(m.head(m.wte(x)).flatten(0, 1), y.flatten(), weight=weights)


@_case(lambda: (torch.zeros(BATCH, dtype=torch.int64),), **_LANGUAGE)
def indices_of_one_dim(m: Any, x: Tensor) -> Result:
    return m.head(m.wte(x)).pow(2).mean()
