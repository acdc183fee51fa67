"""The calls of a training loop, for one side after the other.

- Two plain calls: all outputs, gradients of parameters and of inputs, new buffers, other random numbers in each.
- A forward, the whole call of a second model with the same program and other weights, and the first one's backward.
- Two calls under `no_sync`, both before the first backward, and one after it: the gradients add up.
- A call under `no_sync`, `model.zero_grad()`, and one call: the gradients of the first are gone.
- A call and `model.zero_grad(set_to_none=False)`: gradients are zeros.
- `model.step` with a scale, where there is one scalar loss.
- Two calls for each kind of constant that the forward takes: with another value, and with the target's own.
- Where the forward draws random numbers: calls after torch got another seed, and the same again; calls after
  `set_random_state`, the last with the state that `random_state` gave before the one before it.
- A call with inputs that require gradients, where the target's own do not.
- Calls under `no_grad` in train mode, where the forward draws or writes buffers: two, and one after another seed.
- A call while one submodule is in the other mode, where that matters (`model.block.eval()`).
- Calls in eval mode under `no_grad` and in inference mode, and one with gradients, where eager mode takes them.
- A call after the weights were saved, changed and loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ...diagnostics import StrettoError
from ...runtime.checks.recording import Recording
from .arguments import Arguments, halved
from .constants import Constants
from .modes import OtherMode
from .sides import SCALE, SEEDS, Side
from .single_calls import Made, SingleCalls

_NO_GRAD, _EVAL, _INPUTS, _SAVED = "no_grad", "eval", "inputs that require gradients", "saved weights"
_WITH_GRADIENTS, _INFERENCE = "eval, with gradients", "eval, inference_mode"
_ANOTHER, _AGAIN = "another model between", "the same seed again"
_REFUSABLE = (_NO_GRAD, _EVAL, _WITH_GRADIENTS, _INFERENCE, _INPUTS, _SAVED)
"""Phases that may be refused where the program for training is not; then those are left out whose name begins so."""


@dataclass(frozen=True)
class Loop:
    """The calls, for one side after the other."""

    arguments: Arguments
    trains: bool
    constants: Sequence[Constants] = ()
    """Calls with other constants."""
    evaluates: bool = False
    """Whether the model is called in eval mode, too."""
    differentiated: Arguments | None = None
    """The arguments with gradients wanted for inputs, if a call has them."""
    other_mode: OtherMode | None = None
    """The submodule that is in the other mode in a call, if one is."""

    def record(self, side: Side) -> Recording:
        """What a side computes in each call. The sides get the same tangents."""
        found, random = Recording(), torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.rand(())  # a call that starts the generator again shows in one that has given numbers
            for phase, calls in self._phases(side, random):
                side.model.zero_grad()
                if phase.startswith(tuple(side.refused)):
                    continue
                try:
                    with torch.set_grad_enabled(self.trains):
                        made = calls()
                except StrettoError as error:
                    if phase not in self._refusable:
                        raise
                    side.refused[phase] = f"{error.code}, {error.message}"
                    continue
                own = {name: p.grad for name, p in side.model.named_parameters() if p.grad is not None}
                tensors = (found.outputs, made.outputs), (found.gradients, own | made.gradients)
                for kept, named in (*tensors, (found.buffers, dict(side.model.named_buffers()))):
                    kept.update({f"{name} ({phase})": tensor.detach().clone() for name, tensor in named.items()})
        return found

    @property
    def _refusable(self) -> tuple[str, ...]:
        """Phases that the compiled model may refuse."""
        modes = (self.other_mode.text,) if self.other_mode is not None else ()
        return (*_REFUSABLE, *(each.text for each in self.constants), *modes)

    def _phases(self, side: Side, random: torch.Generator) -> Iterator[tuple[str, Callable[[], Made]]]:
        calls = SingleCalls(side, self.arguments, random)
        yield "own weights", partial(calls.once, self.arguments)
        yield "second call", partial(calls.once, halved(self.arguments))
        yield _ANOTHER, calls.beside_another
        if self.trains and side.facts[0].differentiated:
            yield "no_sync", calls.accumulated
            yield "no_sync, zero_grad", calls.dropped
            yield "zero_grad(set_to_none=False)", calls.zeroed
        if self.trains and len(side.facts[0].differentiated) == 1:
            yield f"step(scale={SCALE:g})", calls.scaled
        for constants in self.constants:
            yield constants.text, partial(calls.once, constants.arguments)
        if self.differentiated is not None:
            yield _INPUTS, partial(calls.once, self.differentiated)
        if self.other_mode is not None:
            yield self.other_mode.text, partial(calls.in_mode, self.other_mode)
        draws = side.facts[0].draws
        if draws:
            yield "another seed", partial(calls.seeded, SEEDS[0])
            yield _AGAIN, partial(calls.seeded, SEEDS[0])
            yield "set_random_state", calls.with_state
        if self.trains and (draws or side.facts[0].writes_buffers):
            yield _NO_GRAD, partial(calls.without_gradients, partial(calls.once, self.arguments))
            yield "no_grad, second call", partial(calls.without_gradients, partial(calls.once, halved(self.arguments)))
            if draws:
                yield "no_grad, another seed", partial(calls.without_gradients, partial(calls.seeded, SEEDS[1]))
        if self.evaluates:
            yield _EVAL, partial(calls.without_gradients, calls.evaluated)
            yield _INFERENCE, calls.inferred
            if side.facts[0].program.pipeline is None:  # a pipeline's forward runs the backward in train mode alone
                yield _WITH_GRADIENTS, calls.evaluated
        yield _SAVED, calls.restored
