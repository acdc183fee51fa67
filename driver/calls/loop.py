"""The calls of a training loop, for one side after the other.

- Two plain calls: all outputs, gradients of those that are differentiated, new buffers, other random numbers in each.
- Two calls under `no_sync` and one after it, whose gradients add up.
- `model.step` with a scale, where there is one scalar loss.
- Calls with two constants, where the forward takes a bool or an integer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...runtime.checks.model_and_program import backward
from ...runtime.checks.random_values import tangent
from ...runtime.checks.recording import Recording
from .arguments import Arguments, fresh, halved
from .sides import SCALE, Side


@dataclass(frozen=True)
class Loop:
    """The calls, for one side after the other."""

    arguments: Arguments
    trains: bool
    constants: Sequence[Arguments] = ()
    """What each of the last calls has in place of the target's arguments."""

    def record(self, side: Side) -> Recording:
        """What a side computes in each call. The sides get the same tangents."""
        found, random = Recording(), torch.Generator().manual_seed(0)
        for phase, calls in self._phases(side, random):
            side.model.zero_grad()
            with torch.set_grad_enabled(self.trains):
                outputs = calls()
            gradients = {name: p.grad for name, p in side.model.named_parameters() if p.grad is not None}
            buffers = dict(side.model.named_buffers())
            for kept, tensors in ((found.outputs, outputs), (found.gradients, gradients), (found.buffers, buffers)):
                kept.update({f"{name} ({phase})": tensor.detach().clone() for name, tensor in tensors.items()})
        return found

    def _phases(self, side: Side, random: torch.Generator) -> Iterator[tuple[str, Callable[[], dict[str, Tensor]]]]:
        def once(arguments: Arguments) -> dict[str, Tensor]:
            outputs = side.call(fresh(arguments))
            facts = side.facts[-1]
            tangents = {i: tangent(outputs[i].shape, random) for i in facts.differentiated if self.trains}
            if tangents:
                backward(outputs, tangents)
            return dict(zip(facts.names, outputs, strict=True))

        def accumulated() -> dict[str, Tensor]:
            with side.no_sync():
                once(self.arguments)
                once(halved(self.arguments))
            return once(self.arguments)

        def scaled() -> dict[str, Tensor]:
            side.step(fresh(self.arguments))
            return {}

        yield "own weights", partial(once, self.arguments)
        yield "second call", partial(once, halved(self.arguments))
        if self.trains and side.facts[0].differentiated:
            yield "no_sync", accumulated
        if self.trains and len(side.facts[0].differentiated) == 1:
            yield f"step(scale={SCALE:g})", scaled
        for constants in self.constants:
            text = ", ".join(f"{name}={value}" for name, value in constants.items())
            yield text, partial(once, {**self.arguments, **constants})
