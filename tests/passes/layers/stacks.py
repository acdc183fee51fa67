"""Stacks of equal layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import Block


class Norm(nn.Module):
    """Root-mean-square normalization in plain ops, which `raise-idioms` finds with its backward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Layer(nn.Module):
    """A block between a norm and dropout; `scale` is a parameter that all layers share, if given."""

    def __init__(self, size: int, drop: float, scale: nn.Parameter | None) -> None:
        super().__init__()
        self.norm, self.block, self.drop, self.scale = Norm(size), Block(size, 2), drop, scale

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = F.dropout(self.block(self.norm(x)), self.drop, self.training) + memory
        return x if self.scale is None else x * self.scale


class SmallLayer(nn.Module):
    """A norm and two linear layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = Norm(size), nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu()) * memory


class Stack(nn.Module):
    """Layers that all add one `memory`, whose gradient is a sum over the layers."""

    def __init__(self, layers: int, *, size: int = 8, drop: float = 0.0, shares: bool = False) -> None:
        super().__init__()
        self.enter = nn.Linear(size, size)
        scale = nn.Parameter(torch.ones(size)) if shares else None
        self.layers = nn.ModuleList(Layer(size, drop, scale) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.enter(x)
        for layer in self.layers:
            x = layer(x, memory)
        return x.square().mean()
