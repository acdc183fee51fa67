"""Random small models: blocks of known layers in any order, over tokens or over features, with a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, TOKENS, VOCAB = 4, 5, 11


@dataclass(frozen=True)
class Spec:
    """What a model is made of; `repr` of it makes the model again."""

    blocks: tuple[str, ...]
    heads: int
    head: int
    inner: int
    tokens: bool
    """Whether the input is token ids, else features."""
    tied: bool


specs = st.builds(
    Spec,
    blocks=st.lists(
        st.sampled_from(["mlp", "gated", "attention", "norm", "rms", "scale", "mix", "center"]), min_size=1, max_size=4
    ).map(tuple),
    heads=st.integers(1, 3),
    head=st.sampled_from([4, 6]),
    inner=st.integers(3, 9),
    tokens=st.booleans(),
    tied=st.booleans(),
)


class Block(nn.Module):
    """One block of a kind; what it computes is added to its input, but for norms and scales."""

    def __init__(self, kind: str, spec: Spec) -> None:
        super().__init__()
        width = spec.heads * spec.head
        self.kind, self.heads = kind, spec.heads
        if kind in ("mlp", "gated"):
            self.up, self.down = nn.Linear(width, spec.inner), nn.Linear(spec.inner, width)
        if kind == "gated":
            self.gate = nn.Linear(width, spec.inner, bias=False)
        if kind == "attention":
            self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=bias) for bias in (True, False, True, True))
        if kind == "norm":
            self.norm: nn.Module = nn.LayerNorm(width)
        if kind == "rms":
            self.norm = nn.RMSNorm(width, eps=1e-6)
        if kind == "scale":
            self.scale = nn.Parameter(torch.rand(width))
        if kind == "mix":
            self.mix = nn.Linear(TOKENS, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "mlp":
                return x + self.down(F.gelu(self.up(x)))
            case "gated":
                return x + self.down(F.silu(self.gate(x)) * self.up(x))
            case "attention":
                q, k, v = (
                    projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                    for projection in (self.q, self.k, self.v)
                )
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                return x + self.o(mixed.transpose(1, 2).flatten(2))
            case "mix":
                return x + self.mix(x.transpose(1, 2)).transpose(1, 2)
            case "scale":
                return x * self.scale
            case "center":
                return x - x.mean(1, keepdim=True)
            case _:
                normed: Tensor = self.norm(x)
                return normed


class Random(nn.Module):
    """The model of a spec; the forward returns the loss."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        width = spec.heads * spec.head
        self.spec = spec
        self.embed = nn.Embedding(VOCAB, width) if spec.tokens else nn.Linear(3, width)
        self.blocks = nn.ModuleList([Block(kind, spec) for kind in spec.blocks])
        self.head = nn.Linear(width, VOCAB, bias=False)
        if spec.tokens and spec.tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy(self.head(h).flatten(0, 1), targets.flatten())


def build(spec: Spec) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and its inputs."""
    x = torch.randint(VOCAB, (BATCH, TOKENS)) if spec.tokens else torch.randn(BATCH, TOKENS, 3)
    return Random(spec), {"x": x, "targets": torch.randint(VOCAB, (BATCH, TOKENS))}
