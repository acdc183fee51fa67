"""Mixtures of experts in plain PyTorch: a router, and experts whose products are batched or in groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COUNT, CHOICES, WIDTH, INNER = 4, 2, 8, 6


class Experts(nn.Module):
    """Gated experts, each row by the matrix of its expert."""

    def __init__(self, count: int = COUNT) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, 2 * INNER, WIDTH) / 3)
        self.down = nn.Parameter(torch.randn(count, WIDTH, INNER) / 3)

    def forward(self, rows: Tensor, experts: Tensor) -> Tensor:
        gate, value = torch.bmm(self.up[experts], rows.unsqueeze(-1)).squeeze(-1).chunk(2, dim=-1)
        return torch.bmm(self.down[experts], (F.silu(gate) * value).unsqueeze(-1)).squeeze(-1)


class GroupedExperts(Experts):
    """The same on rows that are sorted by expert, with biases."""

    def __init__(self, count: int = COUNT) -> None:
        super().__init__(count)
        self.up_bias = nn.Parameter(torch.randn(count, 2 * INNER))
        self.down_bias = nn.Parameter(torch.randn(count, WIDTH))

    def forward(self, rows: Tensor, experts: Tensor) -> Tensor:
        ordered, order = torch.sort(experts)
        ends = (experts.unsqueeze(1) == torch.arange(len(self.up))).sum(0).cumsum(0).to(torch.int32)
        products = torch.ops.stretto.grouped_mm
        up = products(rows[order], self.up.transpose(1, 2), ends) + self.up_bias[ordered]
        gate, value = up[:, ::2], up[:, 1::2]
        down = products(F.silu(gate) * value, self.down.transpose(1, 2), ends) + self.down_bias[ordered]
        return down[torch.argsort(order)]


class Layer(nn.Module):
    """Each token goes to its `CHOICES` best experts; a shared expert takes all tokens."""

    def __init__(self, experts: nn.Module, count: int = COUNT) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.router = nn.Linear(WIDTH, count)
        self.experts = experts
        self.shared = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norm(x).reshape(-1, WIDTH)
        probabilities = self.router(tokens).softmax(-1)
        weights, chosen = probabilities.topk(CHOICES, dim=-1)
        rows = tokens.unsqueeze(1).expand(-1, CHOICES, -1).reshape(-1, WIDTH)
        out = self.experts(rows, chosen.reshape(-1)).reshape(-1, CHOICES, WIDTH)
        mixed = (out * weights.unsqueeze(-1)).sum(1) + self.shared(tokens)
        share = F.one_hot(chosen, len(self.router.bias)).to(x.dtype).mean((0, 1))
        return x + mixed.view_as(x), (share * probabilities.mean(0)).sum()


class Mixture(nn.Module):
    """Layers of experts; the loss has a balance loss of the whole batch, times `balance`."""

    def __init__(self, experts: type[Experts] = Experts, *, layers: int = 1, balance: float = 0.1) -> None:
        super().__init__()
        self.balance = balance
        self.layers = nn.ModuleList(Layer(experts()) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        balance = x.new_zeros(())
        for layer in self.layers:
            x, loss = layer(x)
            balance = balance + loss
        return x.square().mean() + self.balance * balance if self.balance else x.square().mean()
