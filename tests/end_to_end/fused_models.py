"""Attentions and MLPs whose projections are fused into one, taken apart in the ways that published models do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, HEAD = 32, 4, 8


class Attention(nn.Module):
    """Causal attention of one projection to query, key and value; `kv_heads` of its heads have keys and values."""

    def __init__(self, apart: Callable[[Tensor, list[int]], list[Tensor]], kv_heads: int = HEADS) -> None:
        super().__init__()
        self.apart, self.extents = apart, [HEADS * HEAD, kv_heads * HEAD, kv_heads * HEAD]
        self.qkv, self.out = nn.Linear(WIDTH, sum(self.extents)), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.apart(self.qkv(x), self.extents)
        q, k, v = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in parts)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != HEADS)
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """A gated MLP with gate and input in one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Linear(WIDTH, 48, bias=False), nn.Linear(24, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(functional.silu(gate) * up)
        return out


class Blocks(nn.Module):
    """Two blocks with a mean squared error on top."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return ((x - y) ** 2).mean()


def by_split(fused: Tensor, extents: list[int]) -> list[Tensor]:
    """As GPT-2 does."""
    return list(fused.split(extents, dim=-1))


def by_slices(fused: Tensor, extents: list[int]) -> list[Tensor]:
    """As Phi-3 does."""
    q, k, _ = extents
    return [fused[..., :q], fused[..., q : q + k], fused[..., q + k :]]


def by_view(fused: Tensor, extents: list[int]) -> list[Tensor]:
    """As vision transformers do."""
    return [part.flatten(2) for part in fused.view(*fused.shape[:2], 3, HEADS, HEAD).unbind(2)]


MODELS: dict[str, Callable[[], Blocks]] = {
    "split": lambda: Blocks(lambda: Attention(by_split)),
    "slices, grouped": lambda: Blocks(lambda: Attention(by_slices, kv_heads=2)),
    "split, one head of keys": lambda: Blocks(lambda: Attention(by_split, kv_heads=1)),
    "view": lambda: Blocks(lambda: Attention(by_view)),
    "gate and input": lambda: Blocks(Mlp),
}


def plan_of(mesh: str, name: str, axes: str = "tp", rest: str = "") -> str:
    """A plan of the layers that a model has."""
    columns, rows = ("gate_up", "down") if name == "gate and input" else ("qkv", "out")
    return f'{mesh}\nshard "*.{columns}" columns over {axes}\nshard "*.{rows}" rows over {axes}\n{rest}'


def inputs() -> dict[str, Tensor]:
    """Features of four sequences, and what the model should make of them."""
    return {"x": torch.randn(4, 6, WIDTH), "y": torch.randn(4, 6, WIDTH)}
