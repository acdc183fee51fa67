"""The calls of a training loop, for one side after the other.

- Two plain calls: all outputs, gradients of parameters and of inputs, new buffers, other random numbers in each.
- A forward, the whole call of a second model with the same program and other weights, and the first one's backward.
- Two calls under `no_sync`, both before the first backward, and one after it: the gradients add up.
- A call under `no_sync`, `model.zero_grad()`, and one call: the gradients of the first are gone.
- `model.step` with a scale, where there is one scalar loss.
- Two calls for each kind of constant that the forward takes: with another value, and with the target's own.
- Where the forward draws random numbers: a call after torch got another seed, and calls after `set_random_state`, the
  last with the state that `random_state` gave before the one before it.
- A call with inputs that require gradients, where the target's own do not.
- Calls under `no_grad` in train mode, where the forward draws or writes buffers: two, and one after another seed.
- A call while one submodule is in the other mode, where that matters (`model.block.eval()`).
- Calls in eval mode under `no_grad` and in inference mode, and one with gradients, where eager mode takes them.
- A call after the weights were saved, changed and loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ...diagnostics import StrettoError
from ...runtime.checks.model_and_program import backward
from ...runtime.checks.random_values import tangent
from ...runtime.checks.recording import Recording
from ..check.users_call import UsersCall
from .arguments import Arguments, fresh, halved
from .constants import Constants
from .modes import OtherMode, modes_kept
from .sides import SCALE, SEEDS, STATE, Side

_NO_GRAD, _EVAL, _INPUTS, _SAVED = "no_grad", "eval", "inputs that require gradients", "saved weights"
_WITH_GRADIENTS, _INFERENCE = "eval, with gradients", "eval, inference_mode"
_ANOTHER, _OF_ANOTHER = "another model between", "the other model"
_REFUSABLE = (_NO_GRAD, _EVAL, _WITH_GRADIENTS, _INFERENCE, _INPUTS, _SAVED)
"""Phases that may be refused where the program for training is not; then those are left out whose name begins so."""


@dataclass(frozen=True)
class _Made:
    """What a call has made."""

    outputs: dict[str, Tensor]
    """By name."""
    inputs: dict[str, Tensor]
    """The tensors of its arguments, by name."""
    backward: Callable[[], None]
    of_others: dict[str, Tensor] = field(default_factory=dict)
    """Gradients of another model's parameters."""

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Those of the inputs that have one, and of another model."""
        own = {name: tensor.grad for name, tensor in self.inputs.items() if tensor.grad is not None}
        return own | self.of_others


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

    def _phases(self, side: Side, random: torch.Generator) -> Iterator[tuple[str, Callable[[], _Made]]]:
        def forward(arguments: Arguments) -> _Made:
            given = fresh(arguments)
            outputs = side.call(given)
            facts = side.facts[-1]
            trained = facts.differentiated if torch.is_grad_enabled() else ()
            tangents = {i: tangent(outputs[i].shape, random) for i in trained}
            backwards = partial(backward, outputs, tangents) if tangents else _nothing
            return _Made(dict(zip(facts.names, outputs, strict=True)), UsersCall(given, False).tensors, backwards)

        def once(arguments: Arguments) -> _Made:
            made = forward(arguments)
            made.backward()
            return made

        def beside_another() -> _Made:
            """The second model's tensors stand beside the first one's, by other names."""
            first = forward(halved(self.arguments))
            with side.another_model() as model:
                other = once(self.arguments)
                gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            first.backward()
            outputs, of_others = (
                {f"{_OF_ANOTHER}: {name}": tensor for name, tensor in tensors.items()}
                for tensors in (other.outputs, gradients)
            )
            return replace(first, outputs=first.outputs | outputs, of_others=of_others)

        def accumulated() -> _Made:
            batches = (self.arguments, halved(self.arguments))
            with side.no_sync():
                with side.no_sync():  # its end does not end the outer one
                    once(self.arguments)
                if side.waits_with_backwards:
                    for made in [forward(arguments) for arguments in batches]:
                        made.backward()
                else:
                    for arguments in batches:
                        once(arguments)
            return once(self.arguments)

        def dropped() -> _Made:
            with side.no_sync():
                once(self.arguments)
            side.model.zero_grad()
            return once(self.arguments)

        def scaled() -> _Made:
            side.step(fresh(self.arguments))
            return _Made({}, {}, _nothing)

        def seeded(seed: int) -> _Made:
            side.seed(seed)
            return once(self.arguments)

        def with_state() -> _Made:
            side.set_random_state(STATE)
            once(self.arguments)
            state = side.random_state()
            once(self.arguments)
            side.set_random_state(state)
            return once(self.arguments)

        def restored() -> _Made:
            side.restore_weights()
            return once(self.arguments)

        def without_gradients(calls: Callable[[], _Made]) -> _Made:
            with torch.no_grad():
                return calls()

        def evaluated() -> _Made:
            with modes_kept(side.model):
                side.model.eval()
                return once(self.arguments)

        def inferred() -> _Made:
            with torch.inference_mode():
                return evaluated()

        def in_mode(mode: OtherMode) -> _Made:
            with mode.within(side.model):
                return once(self.arguments)

        yield "own weights", partial(once, self.arguments)
        yield "second call", partial(once, halved(self.arguments))
        yield _ANOTHER, beside_another
        if self.trains and side.facts[0].differentiated:
            yield "no_sync", accumulated
            yield "no_sync, zero_grad", dropped
        if self.trains and len(side.facts[0].differentiated) == 1:
            yield f"step(scale={SCALE:g})", scaled
        for constants in self.constants:
            yield constants.text, partial(once, constants.arguments)
        if self.differentiated is not None:
            yield _INPUTS, partial(once, self.differentiated)
        if self.other_mode is not None:
            yield self.other_mode.text, partial(in_mode, self.other_mode)
        draws = side.facts[0].draws
        if draws:
            yield "another seed", partial(seeded, SEEDS[0])
            yield "set_random_state", with_state
        if self.trains and (draws or side.facts[0].writes_buffers):
            yield _NO_GRAD, partial(without_gradients, partial(once, self.arguments))
            yield "no_grad, second call", partial(without_gradients, partial(once, halved(self.arguments)))
            if draws:
                yield "no_grad, another seed", partial(without_gradients, partial(seeded, SEEDS[1]))
        if self.evaluates:
            yield _EVAL, partial(without_gradients, evaluated)
            yield _INFERENCE, inferred
            if side.facts[0].program.pipeline is None:  # a pipeline's forward runs the backward in train mode alone
                yield _WITH_GRADIENTS, evaluated
        yield _SAVED, restored


def _nothing() -> None:
    """The backward of a call that has none."""
