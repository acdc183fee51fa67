"""Steps of a model whose written buffers are states (`stretto.compile(.., states=..)`), for one side after the other.

States stay with the ranks, so that a fault of theirs shows in a later step than it happens: the steps are four, and
before the third the caller gives the buffers other values, as between two sequences. Steps may all write one place of a
buffer: the other values are random, so that they show in what is read beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...runtime.checks.recording import Recording
from .arguments import Arguments, fresh, halved
from .sides import Side

_STEPS = 4
_RESET = 2
"""The step before which the caller writes the states."""


@dataclass(frozen=True)
class StateSteps:
    """The steps, without gradients."""

    arguments: Arguments
    others: Mapping[str, Tensor]
    """The values that the caller gives the states, by name."""

    @classmethod
    def of(cls, model: nn.Module, arguments: Arguments, names: tuple[str, ...]) -> StateSteps:
        """Those of a model that has not made a step."""
        buffers, random = dict(model.named_buffers()), torch.Generator().manual_seed(0)
        return cls(arguments, {name: _moved(buffers[name].detach().clone(), random) for name in names})

    def record(self, side: Side) -> Recording:
        """Outputs and buffers after each step."""
        found = Recording()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for step in range(_STEPS):
                if step == _RESET:
                    buffers = dict(side.model.named_buffers())
                    for name, value in self.others.items():
                        buffers[name].copy_(value)
                outputs = side.call(fresh(halved(self.arguments) if step % 2 else self.arguments))
                named = dict(zip(side.facts[-1].names, outputs, strict=True))
                text = f"states, step {step + 1}"
                for kept, tensors in (found.outputs, named), (found.buffers, dict(side.model.named_buffers())):
                    kept.update({f"{name} ({text})": tensor.detach().clone() for name, tensor in tensors.items()})
        return found


def _moved(value: Tensor, random: torch.Generator) -> Tensor:
    """Floating values with a random number each; others, which may be positions, as they are."""
    if not value.is_floating_point():
        return value
    return value + torch.rand(value.shape, generator=random).to(value.dtype)
