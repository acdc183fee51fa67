"""The calls of a loop, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ...runtime.checks.model_and_program import backward
from ...runtime.checks.random_values import tangent
from ..check.users_call import UsersCall
from .arguments import Arguments, fresh, halved
from .modes import OtherMode, modes_kept
from .sides import STATE, Side

_OF_ANOTHER = "the other model"


@dataclass(frozen=True)
class Made:
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
class SingleCalls:
    """What a training loop may do around a call, done to one side."""

    side: Side
    arguments: Arguments
    random: torch.Generator
    """Of tangents."""

    def forward(self, arguments: Arguments) -> Made:
        given = fresh(arguments)
        outputs = self.side.call(given)
        facts = self.side.facts[-1]
        trained = facts.differentiated if torch.is_grad_enabled() else ()
        tangents = {i: tangent(outputs[i].shape, self.random) for i in trained}
        backwards = partial(backward, outputs, tangents) if tangents else _nothing
        return Made(dict(zip(facts.names, outputs, strict=True)), UsersCall(given, False).tensors, backwards)

    def once(self, arguments: Arguments) -> Made:
        made = self.forward(arguments)
        made.backward()
        return made

    def beside_another(self) -> Made:
        """The second model's tensors stand beside the first one's, by other names."""
        first = self.forward(halved(self.arguments))
        with self.side.another_model() as model:
            other = self.once(self.arguments)
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        first.backward()
        outputs, of_others = (
            {f"{_OF_ANOTHER}: {name}": tensor for name, tensor in tensors.items()}
            for tensors in (other.outputs, gradients)
        )
        return replace(first, outputs=first.outputs | outputs, of_others=of_others)

    def accumulated(self) -> Made:
        batches = (self.arguments, halved(self.arguments))
        with self.side.no_sync():
            with self.side.no_sync():  # its end does not end the outer one
                self.once(self.arguments)
            if self.side.waits_with_backwards:
                for made in [self.forward(arguments) for arguments in batches]:
                    made.backward()
            else:
                for arguments in batches:
                    self.once(arguments)
        return self.once(self.arguments)

    def dropped(self) -> Made:
        with self.side.no_sync():
            self.once(self.arguments)
        self.side.model.zero_grad()
        return self.once(self.arguments)

    def zeroed(self) -> Made:
        self.once(self.arguments)
        self.side.model.zero_grad(set_to_none=False)
        return Made({}, {}, _nothing)

    def scaled(self) -> Made:
        self.side.step(fresh(self.arguments))
        return Made({}, {}, _nothing)

    def seeded(self, seed: int) -> Made:
        self.side.seed(seed)
        return self.once(self.arguments)

    def with_state(self) -> Made:
        self.side.set_random_state(STATE)
        self.once(self.arguments)
        state = self.side.random_state()
        self.once(self.arguments)
        self.side.set_random_state(state)
        return self.once(self.arguments)

    def restored(self) -> Made:
        self.side.restore_weights()
        return self.once(self.arguments)

    def without_gradients(self, calls: Callable[[], Made]) -> Made:
        with torch.no_grad():
            return calls()

    def evaluated(self) -> Made:
        with modes_kept(self.side.model):
            self.side.model.eval()
            return self.once(self.arguments)

    def inferred(self) -> Made:
        with torch.inference_mode():
            return self.evaluated()

    def in_mode(self, mode: OtherMode) -> Made:
        with mode.within(self.side.model):
            return self.once(self.arguments)


def _nothing() -> None:
    """The backward of a call that has none."""
