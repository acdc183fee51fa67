"""The calls of a training loop, for one side after the other.

- Two plain calls: all outputs, gradients of parameters and of inputs, new buffers, other random numbers in each.
- Two calls under `no_sync`, both before the first backward, and one after it: the gradients add up.
- `model.step` with a scale, where there is one scalar loss.
- A call after torch got another seed, where the forward draws random numbers.
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
from ..check.users_call import UsersCall
from .arguments import Arguments, fresh, halved
from .sides import SCALE, Side


@dataclass(frozen=True)
class _Made:
    """What a call has made."""

    outputs: dict[str, Tensor]
    """By name."""
    inputs: dict[str, Tensor]
    """The tensors of its arguments, by name."""
    backward: Callable[[], None]

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Those of the inputs that have one."""
        return {name: tensor.grad for name, tensor in self.inputs.items() if tensor.grad is not None}


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
        with torch.random.fork_rng(devices=[]):
            for phase, calls in self._phases(side, random):
                side.model.zero_grad()
                with torch.set_grad_enabled(self.trains):
                    made = calls()
                own = {name: p.grad for name, p in side.model.named_parameters() if p.grad is not None}
                tensors = (found.outputs, made.outputs), (found.gradients, own | made.gradients)
                for kept, named in (*tensors, (found.buffers, dict(side.model.named_buffers()))):
                    kept.update({f"{name} ({phase})": tensor.detach().clone() for name, tensor in named.items()})
        return found

    def _phases(self, side: Side, random: torch.Generator) -> Iterator[tuple[str, Callable[[], _Made]]]:
        def forward(arguments: Arguments) -> _Made:
            given = fresh(arguments)
            outputs = side.call(given)
            facts = side.facts[-1]
            tangents = {i: tangent(outputs[i].shape, random) for i in facts.differentiated if self.trains}
            backwards = partial(backward, outputs, tangents) if tangents else _nothing
            return _Made(dict(zip(facts.names, outputs, strict=True)), UsersCall(given, False).tensors, backwards)

        def once(arguments: Arguments) -> _Made:
            made = forward(arguments)
            made.backward()
            return made

        def accumulated() -> _Made:
            batches = (self.arguments, halved(self.arguments))
            with side.no_sync():
                if side.waits_with_backwards:
                    for made in [forward(arguments) for arguments in batches]:
                        made.backward()
                else:
                    for arguments in batches:
                        once(arguments)
            return once(self.arguments)

        def scaled() -> _Made:
            side.step(fresh(self.arguments))
            return _Made({}, {}, _nothing)

        def seeded() -> _Made:
            side.seed()
            return once(self.arguments)

        yield "own weights", partial(once, self.arguments)
        yield "second call", partial(once, halved(self.arguments))
        if self.trains and side.facts[0].differentiated:
            yield "no_sync", accumulated
        if self.trains and len(side.facts[0].differentiated) == 1:
            yield f"step(scale={SCALE:g})", scaled
        for constants in self.constants:
            text = ", ".join(f"{name}={value}" for name, value in constants.items())
            yield text, partial(once, {**self.arguments, **constants})
        if side.facts[0].draws:
            yield "another seed", seeded


def _nothing() -> None:
    """The backward of a call that has none."""
