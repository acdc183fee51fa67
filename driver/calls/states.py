"""Steps of a model whose written buffers are states (`stretto.compile(.., states=..)`), for one side after the other.

States stay with the ranks, so that a fault of theirs shows in a later step than it happens: the steps are four, and
before the third the caller gives the buffers their first values again, as between two sequences.
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
"""The step before which the caller resets the states."""


@dataclass(frozen=True)
class StateSteps:
    """The steps, without gradients."""

    arguments: Arguments
    first: Mapping[str, Tensor]
    """The states' first values, by name."""

    @classmethod
    def of(cls, model: nn.Module, arguments: Arguments, names: tuple[str, ...]) -> StateSteps:
        """Those of a model that has not made a step."""
        buffers = dict(model.named_buffers())
        return cls(arguments, {name: buffers[name].detach().clone() for name in names})

    def record(self, side: Side) -> Recording:
        """Outputs and buffers after each step."""
        found = Recording()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for step in range(_STEPS):
                if step == _RESET:
                    buffers = dict(side.model.named_buffers())
                    for name, value in self.first.items():
                        buffers[name].copy_(value)
                outputs = side.call(fresh(halved(self.arguments) if step % 2 else self.arguments))
                named = dict(zip(side.facts[-1].names, outputs, strict=True))
                text = f"states, step {step + 1}"
                for kept, tensors in (found.outputs, named), (found.buffers, dict(side.model.named_buffers())):
                    kept.update({f"{name} ({text})": tensor.detach().clone() for name, tensor in tensors.items()})
        return found
