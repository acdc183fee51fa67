"""The two sides of a training loop: the compiled model, and the same model in eager PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...runtime.checks.model_and_program import backward
from ...runtime.checks.separate_microbatches import forward as forward_of_microbatches
from ...runtime.philox import RngState
from ...runtime.program.program import Program
from ...runtime.program.reference_records import Reference
from ..check.eager_model import EagerModel
from ..check.users_call import UsersCall
from ..model.compiled_module import compiled_module, program_of
from .arguments import Arguments

SCALE = 3.0
"""The scale of `model.step`: a fault that applies it twice, or not at all, differs."""
SEEDS = (0x5EED, 0x5EEE)
"""Torch's other seeds: a model that goes on with the random numbers of an earlier one differs."""


@dataclass(frozen=True)
class CallFacts:
    """What the program of a call says of it."""

    names: tuple[str, ...]
    """Of the outputs."""
    differentiated: tuple[int, ...]
    """Positions of the outputs that may be differentiated."""
    program: Program

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return bool(self.program.of_kind("random"))

    @property
    def writes_buffers(self) -> bool:
        """Whether it gives buffers new values."""
        return bool(self.program.results_of_kind("buffer"))


class Side(ABC):
    """One side of the loop: a model, called as its user does. `facts` are those of its calls so far, in order."""

    waits_with_backwards = False
    """Whether forwards come before the first backward. Eager mode may refuse that, and gives the same."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.facts: list[CallFacts] = []
        self.refused = ""
        """The first call without gradients that the compiled model refuses, and why; no later one is made."""

    @abstractmethod
    def call(self, arguments: Arguments) -> list[Tensor]:
        """The tensors of `model(**arguments)`, each once."""

    @abstractmethod
    def step(self, arguments: Arguments) -> None:
        """Add the gradients of SCALE times the loss."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Around calls whose gradients wait."""
        return nullcontext()

    def seed(self, seed: int) -> None:
        """Give torch another seed."""
        torch.manual_seed(seed)


class CompiledSide(Side):
    """The compiled model."""

    waits_with_backwards = True

    def call(self, arguments: Arguments) -> list[Tensor]:
        """See `Side.call`."""
        outputs = _tensors_of(self.model(**arguments))
        self._note()
        return outputs

    def step(self, arguments: Arguments) -> None:
        """See `Side.step`."""
        compiled_module(self.model).step(self.model, (), arguments, SCALE)
        self._note()

    def no_sync(self) -> AbstractContextManager[None]:
        """See `Side.no_sync`."""
        return compiled_module(self.model).no_sync()

    def _note(self) -> None:
        program, variant = program_of(self.model), compiled_module(self.model).last
        names = tuple(output.name or str(output.index) for output in program.results_of_kind("output"))
        losses = () if variant is None else variant.losses
        self.facts.append(CallFacts(names, losses, program))


class EagerSide(Side):
    """The model in eager PyTorch. It makes the calls of `compiled`; its n-th forward that draws has the n-th state.

    Inputs in `whole` are not cut into microbatches (`roles.py`).
    """

    def __init__(
        self,
        model: nn.Module,
        compiled: Side,
        compute: torch.dtype | None,
        *,
        raised: bool,
        whole: Collection[str] = (),
    ) -> None:
        super().__init__(model)
        self._compute, self._raised, self._whole = compute, raised, whole
        self._to_come, self.refused = list(compiled.facts), compiled.refused
        self._seed, self._forwards = torch.initial_seed(), 0
        self.differentiable: list[tuple[int, ...]] = []
        """By call, the positions of the outputs that eager mode lets one differentiate."""

    def call(self, arguments: Arguments) -> list[Tensor]:
        """See `Side.call`."""
        facts = self._to_come.pop(0)
        reference = facts.program.single_device
        assert reference is not None, "a program that was just compiled has one"
        names = {argument.index: argument.name for argument in reference.inputs if argument.kind == "input"}
        call = UsersCall(arguments, False, self._compute)
        buffers = {name for name, _ in self.model.named_buffers()}
        eager = EagerModel(
            self.model, call, names, {}, buffers, raised=self._raised,
            state_of=lambda nth: RngState(self._seed, self._forwards + nth),
        )  # fmt: skip
        inputs = {index: call.tensors[name] for index, name in names.items()}
        reference = self._with_whole_inputs(reference, inputs)
        outputs = forward_of_microbatches(facts.program, reference, eager, inputs)
        self._forwards += eager.forwards if facts.draws else 0
        self.facts.append(facts)
        self.differentiable.append(_differentiable(outputs))
        return outputs

    def _with_whole_inputs(self, reference: Reference, tensors: Mapping[int | None, Tensor]) -> Reference:
        """The reference, which cuts the inputs whose shape in it is that of a microbatch, but for those in `whole`."""
        inputs = [
            replace(each, shape=tuple(tensors[each.index].shape))
            if each.kind == "input" and each.name in self._whole else each
            for each in reference.inputs
        ]  # fmt: skip
        return replace(reference, inputs=tuple(inputs))

    def seed(self, seed: int) -> None:
        """See `Side.seed`; the next forward that draws is the seed's first."""
        super().seed(seed)
        self._seed, self._forwards = torch.initial_seed(), 0

    def step(self, arguments: Arguments) -> None:
        """See `Side.step`."""
        [position] = self._to_come[0].differentiated
        loss = self.call(arguments)[position]
        backward([loss], {0: torch.full_like(loss, SCALE)})


def _differentiable(outputs: Sequence[Tensor]) -> tuple[int, ...]:
    """Of what eager mode returned, the outputs that may be differentiated: scalar losses, else all."""
    required = [position for position, output in enumerate(outputs) if output.requires_grad]
    floating = [position for position in required if outputs[position].is_floating_point()]
    return tuple([position for position in floating if not outputs[position].dim()] or floating)


def _tensors_of(result: Any) -> list[Tensor]:
    """The tensors of what a forward returned, each once, in their order."""
    return list({id(leaf): leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)}.values())
