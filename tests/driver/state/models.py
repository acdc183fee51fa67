"""A model with every kind of tensor, in and outside the state dict, and its training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = 11  # uneven over tp
PLAN = """
mesh ({mesh})
shard "up" columns over tp
shard "down" rows over tp
shard "embed" vocab over tp
"""


class Small(nn.Module):
    """A tied embedding, a norm, a feed-forward, a buffer that is saved and one that is not."""

    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCAB, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, hidden), nn.Linear(hidden, 8)
        self.head = nn.Linear(8, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.arange(8.0) / 100, persistent=False)
        self.register_buffer("count", torch.zeros(()))
        self.scale: Tensor
        self.count: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        self.count.add_(1)
        x = self.embed(tokens) + self.scale
        x = x + self.down(F.relu(self.up(self.norm(x))))
        return F.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def seeded(seed: int = 0, hidden: int = 12) -> Small:
    """A model in float64 whose values come from `seed`."""
    torch.manual_seed(seed)
    return Small(hidden).double()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all trainings."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> list[float]:
    """The losses of some steps; the batch follows from a step's number."""
    losses = []
    for step in steps:
        loss = model(torch.randint(VOCAB, (4, 6), generator=torch.Generator().manual_seed(step)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
