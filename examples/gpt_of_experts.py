"""A GPT whose MLPs are mixtures of experts, in plain PyTorch: every token goes to the best two of its experts."""

import torch
from gpt import GPT, Config
from torch import Tensor, nn
from torch.nn import functional as F


class Experts(nn.Module):
    """MLPs of the same sizes, each matrix with those of all experts: (experts, out, in)."""

    def __init__(self, count: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, inner, hidden) / hidden**0.5)
        self.down = nn.Parameter(torch.randn(count, hidden, inner) / inner**0.5)

    def forward(self, rows: Tensor, experts: Tensor) -> Tensor:
        """Rows (rows, hidden), each through its expert."""
        inner = torch.bmm(self.up[experts], rows.unsqueeze(-1))
        return torch.bmm(self.down[experts], F.gelu(inner)).squeeze(-1)


class Mixture(nn.Module):
    """A router and its experts, with a shared expert for all tokens where `shared` says so."""

    def __init__(self, config: Config, count: int, *, choices: int = 2, shared: bool = False) -> None:
        super().__init__()
        self.choices = choices
        self.router = nn.Linear(config.hidden, count, bias=False)
        self.experts = Experts(count, config.hidden, 2 * config.hidden)
        self.shared = nn.Linear(config.hidden, config.hidden) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, hidden) to the same."""
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(-1).topk(self.choices)
        rows = tokens.unsqueeze(1).expand(-1, self.choices, -1).flatten(0, 1)
        out = self.experts(rows, chosen.flatten()).unflatten(0, (-1, self.choices))
        mixed = (out * weights.unsqueeze(-1)).sum(1)
        if self.shared is not None:
            mixed = mixed + self.shared(tokens)
        return mixed.view_as(x)


def gpt_of_experts(config: Config, count: int = 4, *, shared: bool = False) -> GPT:
    """A GPT with `count` experts in each layer."""
    model = GPT(config)
    for layer in model.layers:
        layer.mlp = Mixture(config, count, shared=shared)
    return model
