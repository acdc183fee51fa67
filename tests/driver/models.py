"""A small GPT, plain and decorated, and the comparisons of the tests of `stretto.compile`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import stretto
import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB, WIDTH, SEQ, BATCH = 50, 16, 8, 4

DP = "mesh (dp=2)"
TP = """
mesh (tp=2)
shard "*.{q,k,v}_proj", "*.up" columns over tp
shard "*.o_proj", "*.down" rows over tp
shard "embed" vocab over tp
"""
SEQUENCE = TP.replace("tp=2", "dp=2, tp=2") + "shard activations tokens over tp"
STORED = f'{DP}\nstore "*" dim 0 over dp'
PLANS = {"dp": DP, "tp": TP, "dp_tp_sequence": SEQUENCE, "stored": STORED}


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q, k, v = (
            p(x).view(batch, seq, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.o_proj(output.transpose(1, 2).reshape(batch, seq, width))
        return result


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention(2)
        self.norm2, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class PlainGPT(nn.Module):
    """Tied embedding, learned positions; the loss where targets are given, else the logits."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(SEQ, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@stretto.compile(plan="gpt.plan")
class GPT(PlainGPT):
    """Compiled; the plan lies beside this file."""

    def __init__(self, layers: int = 1, name: str = "") -> None:
        super(GPT, self).__init__(layers)  # noqa: UP008  the old form finds the class by its global name
        self.name = name


@stretto.compile(plan=DP)
class Small(nn.Module):
    """Quick to compile: a linear layer, and a norm with running statistics that eval mode freezes."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        result: Tensor = (self.norm(self.linear(x)) * scale).pow(2).mean()
        return result


class Deeper(Small):
    """A subclass of a compiled class, with more parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(self.more(x), scale)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and targets."""
    generator = torch.Generator().manual_seed(seed)
    window = torch.randint(VOCAB, (BATCH, SEQ + 1), generator=generator)
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def twins(dtype: torch.dtype = torch.float32, layers: int = 1) -> tuple[PlainGPT, PlainGPT]:
    """Two plain models with the same values."""
    torch.manual_seed(0)
    model = PlainGPT(layers).to(dtype)
    return model, copy.deepcopy(model)


def train(
    model: nn.Module, steps: int, changed: Callable[[nn.Module, int], None] = lambda model, step: None
) -> list[float]:
    """The losses of some steps of AdamW; `changed` is called before each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        changed(model, step)
        loss = model(*batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
