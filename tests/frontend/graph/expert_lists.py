"""Mixtures whose experts are a list of modules, each of which computes all rows; a mask keeps those that chose it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, INNER, COUNT, CHOICES = 8, 6, 4, 2


class Expert(nn.Module):
    """A gated expert."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * INNER, bias=bias)
        self.down = nn.Linear(INNER, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


Sum = Callable[[nn.ModuleList, Tensor, Tensor], Tensor]
"""Of experts, rows and the router's probabilities: each row's results of its experts, added up."""


def compared(experts: nn.ModuleList, rows: Tensor, probabilities: Tensor) -> Tensor:
    """In place; each expert's number is compared with the choice."""
    weights, chosen = probabilities.topk(CHOICES, dim=-1)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(experts):
        out += expert(rows) * (weights * (chosen == number)).sum(-1, keepdim=True)
    return out


def scattered(experts: nn.ModuleList, rows: Tensor, probabilities: Tensor) -> Tensor:
    """Normalised weights are scattered; the rows themselves are added too."""
    weights, chosen = probabilities.topk(CHOICES)
    weights = weights / weights.sum(-1, keepdim=True)
    gates = torch.zeros_like(probabilities).scatter(-1, chosen, weights)
    out = rows * 2
    for number, expert in enumerate(experts):
        out = out + gates[..., number : number + 1] * expert(rows)
    return out


def one_hot(experts: nn.ModuleList, rows: Tensor, probabilities: Tensor) -> Tensor:
    """Two factors, of which one is the mask."""
    mask = F.one_hot(probabilities.topk(CHOICES).indices, COUNT).sum(-2).to(rows.dtype)
    terms = (
        expert(rows) * mask[..., number, None] * probabilities[..., number].unsqueeze(-1)
        for number, expert in enumerate(experts)
    )
    return sum(terms, start=torch.zeros(()))


def best(experts: nn.ModuleList, rows: Tensor, probabilities: Tensor) -> Tensor:
    """One expert a row."""
    chosen = probabilities.argmax(-1)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(experts):
        out = out + (chosen == number).unsqueeze(-1) * expert(rows)
    return out


def unmasked(experts: nn.ModuleList, rows: Tensor, probabilities: Tensor) -> Tensor:
    """Every expert counts for every row."""
    return sum((e(rows) * probabilities[..., n, None] for n, e in enumerate(experts)), start=torch.zeros(()))


def by_score(experts: nn.ModuleList, rows: Tensor, probabilities: Tensor) -> Tensor:
    """Equal scores may choose more experts than the top-k has."""
    least = probabilities.topk(CHOICES).values[..., -1:]
    gates = probabilities * (probabilities >= least)
    return sum((e(rows) * gates[..., n, None] for n, e in enumerate(experts)), start=torch.zeros(()))


def centred(experts: nn.ModuleList, rows: Tensor, probabilities: Tensor) -> Tensor:
    """An expert's result depends on all rows."""
    weights, chosen = probabilities.topk(CHOICES, dim=-1)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(experts):
        y = expert(rows)
        out = out + (y - y.mean(0)) * (weights * (chosen == number)).sum(-1, keepdim=True)
    return out


def shuffled(experts: nn.ModuleList, rows: Tensor, probabilities: Tensor) -> Tensor:
    """The numbers of the mask are not those of the loop."""
    weights, chosen = probabilities.topk(CHOICES, dim=-1)
    out = torch.zeros_like(rows)
    for number, expert in enumerate(experts):
        out = out + expert(rows) * (weights * (chosen == (number + 1) % COUNT)).sum(-1, keepdim=True)
    return out


class Layer(nn.Module):
    """A router and its experts; `flat` makes rows of the tokens first."""

    def __init__(self, sum_of: Sum, *, bias: bool, flat: bool, count: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.router = nn.Linear(WIDTH, count)
        self.experts = nn.ModuleList(Expert(bias=bias) for _ in range(count))
        self.sum_of, self.flat = sum_of, flat

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x)
        rows = rows.reshape(-1, WIDTH) if self.flat else rows
        return x + self.sum_of(self.experts, rows, self.router(rows).softmax(-1)).view_as(x)


class Listed(nn.Module):
    """Layers whose experts are a list."""

    def __init__(
        self, sum_of: Sum = compared, *, layers: int = 1, bias: bool = True, flat: bool = True, count: int = COUNT
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(sum_of, bias=bias, flat=flat, count=count) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()
