"""A small model with a tied weight, a norm and repeated layers, and plain torch's results in another dtype."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

TENSOR_PARALLEL = 'shard "*.up" columns over tp\nshard "*.down" rows over tp\n'
PLANS = {"one": "mesh (dp=1)\n", "dp": "mesh (dp=2)\n", "dp_tp": f"mesh (dp=2, tp=2)\n{TENSOR_PARALLEL}"}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inside: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + inside


class Net(nn.Module):
    """`autocast`: run the blocks in a region of it."""

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(Block(16) for _ in range(2))
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight
        self.autocast = autocast

    def forward(self, ids: Tensor) -> Tensor:
        with nullcontext() if self.autocast is None else torch.autocast("cpu", self.autocast):
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x)
            logits = self.head(x)
        return F.cross_entropy(logits.float().flatten(0, 1), ids.flip(1).flatten())


def build(autocast: torch.dtype | None = None) -> tuple[Net, Tensor]:
    """The model, and ids for it."""
    torch.manual_seed(0)
    return Net(autocast), torch.randint(0, 32, (4, 6))


def on_casts(model: nn.Module, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The loss of the model on casts of its parameters, by plain torch."""
    loss: Tensor = functional_call(
        model, {name: parameter.to(dtype) for name, parameter in model.named_parameters()}, (ids,)
    )
    return loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def eager_step(model: nn.Module, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a copy, on casts."""
    copy = deepcopy(model)
    loss = on_casts(copy, ids, dtype)
    loss.backward()
    return loss, gradients(copy)


def largest_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Over all tensors, relative to each one's largest magnitude."""
    assert actual.keys() == expected.keys()
    return max(float((actual[name] - one).abs().max() / one.abs().max()) for name, one in expected.items())
