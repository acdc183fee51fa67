"""The two sides of a training loop: the compiled model, and the same model in eager PyTorch."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ...runtime.checks.model_and_program import backward
from ...runtime.checks.separate_microbatches import forward as forward_of_microbatches
from ...runtime.philox import RngState
from ...runtime.program.program import Program
from ...runtime.program.reference_records import Reference
from ..check.eager_model import EagerModel
from ..check.users_call import UsersCall, tensors_of
from ..model.compiled_module import compiled_module, program_of, random_state, set_random_state
from ..state.weights import load_weights, save_weights
from .arguments import Arguments
from .process_state import RANDOM_STATE, after_a_number, noting_changes
from .structures import Structure

SCALE = 3.0
"""The scale of `model.step`: a fault that applies it twice, or not at all, differs."""
STATE = RngState(seed=0x5EEF, step=(1 << 31) + (1 << 17) + (1 << 9) + 7)
"""An RNG state as a checkpoint has one, with another seed than torch's."""
_MOVED = 0.75
"""The factor by which weights change before saved ones are loaded."""
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
    structure: Structure | None = None
    """That of the result; None where the call returns the loss alone, as `step` does."""

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
        self.refused: dict[str, str] = {}
        """Calls that the compiled model refuses, and why. Neither side makes them."""
        self.early: set[str] = set()
        """Calls in which gradients were reduced inside `no_sync`."""
        self.left_behind: set[str] = set()
        """What calls of the compiled model changed in the process."""
        self._memory = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}

    @property
    def moved_buffers(self) -> list[str]:
        """The buffers that are in other memory than before the first call, where no view of them is."""
        return [name for name, buffer in self.model.named_buffers() if buffer.data_ptr() != self._memory.get(name)]

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

    @abstractmethod
    def set_random_state(self, state: RngState) -> None:
        """Give the next forward that draws this state."""

    @abstractmethod
    def random_state(self) -> RngState:
        """The state of the next forward that draws, as a checkpoint takes it."""

    @contextmanager
    def another_model(self) -> Iterator[nn.Module]:
        """Inside, calls are those of a second model, a copy with other weights, while the first one is alive."""
        own, self.model = self.model, self._copy()
        try:
            with torch.no_grad():
                for tensor in self.model.parameters():
                    if tensor.is_floating_point():
                        tensor.mul_(_MOVED)
            yield self.model
        finally:
            self.model = own

    def _copy(self) -> nn.Module:
        """A copy of the model, without gradients."""
        model = copy.deepcopy(self.model)
        model.zero_grad()
        return model

    def restore_weights(self) -> None:
        """Save the weights, change all parameters and buffers, and load the weights."""
        with TemporaryDirectory(prefix="stretto") as folder:
            self.save_weights(Path(folder) / "weights.safetensors")
            with torch.no_grad():
                for tensor in (*self.model.parameters(), *self.model.buffers()):
                    if tensor.is_floating_point():
                        tensor.mul_(_MOVED)
            self.load_weights(Path(folder) / "weights.safetensors")

    @abstractmethod
    def save_weights(self, path: Path) -> None:
        """Keep parameters and persistent buffers."""

    @abstractmethod
    def load_weights(self, path: Path) -> None:
        """Give parameters and persistent buffers the values that were kept."""


class CompiledSide(Side):
    """The compiled model."""

    waits_with_backwards = True

    def call(self, arguments: Arguments) -> list[Tensor]:
        """See `Side.call`."""
        changed: set[str] = set()
        with noting_changes(changed):
            generator = after_a_number()
            result = self.model(**arguments)
            takes_a_number = torch.equal(torch.get_rng_state(), generator)
        self._note(Structure.of(result))
        self.left_behind |= changed - ({RANDOM_STATE} if self.facts[-1].draws and takes_a_number else set())
        return tensors_of(result)

    def step(self, arguments: Arguments) -> None:
        """See `Side.step`."""
        compiled_module(self.model).step(self.model, (), arguments, SCALE)
        self._note()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """See `Side.no_sync`."""
        module = compiled_module(self.model)
        with module.no_sync():
            yield
        waits = any(output.unreduced_over for output in program_of(self.model).results_of_kind("gradient"))
        if waits and not module.has_unreduced_gradients:
            self.early.add("no_sync")

    def _copy(self) -> nn.Module:
        model = super()._copy()
        compiled_module(self.model).share_program(compiled_module(model), model)
        return model

    def set_random_state(self, state: RngState) -> None:
        """See `Side.set_random_state`."""
        set_random_state(self.model, state)

    def random_state(self) -> RngState:
        """See `Side.random_state`."""
        return random_state(self.model)

    def save_weights(self, path: Path) -> None:
        """See `Side.save_weights`."""
        save_weights(self.model, path)

    def load_weights(self, path: Path) -> None:
        """See `Side.load_weights`."""
        load_weights(self.model, path)

    def _note(self, structure: Structure | None = None) -> None:
        program, variant = program_of(self.model), compiled_module(self.model).last
        names = tuple(output.name or str(output.index) for output in program.results_of_kind("output"))
        losses = () if variant is None else variant.losses
        self.facts.append(CallFacts(names, losses, program, structure))


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
        self._to_come, self.refused = list(compiled.facts), dict(compiled.refused)
        self._seed, self._forwards = torch.initial_seed(), 0
        self.differentiable: list[tuple[int, ...]] = []
        """By call, the positions of the outputs that eager mode lets one differentiate."""
        self.structures: list[Structure | None] = []
        """By call, that of the result; None where each microbatch has a result of its own."""
        self._kept: Mapping[str, Tensor] = {}

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
        self.structures.append(Structure.of(eager.result) if eager.forwards == 1 else None)
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

    def set_random_state(self, state: RngState) -> None:
        """See `Side.set_random_state`."""
        self._seed, self._forwards = state.seed, state.step

    def random_state(self) -> RngState:
        """See `Side.random_state`."""
        return RngState(self._seed, self._forwards)

    @contextmanager
    def another_model(self) -> Iterator[nn.Module]:
        """See `Side.another_model`; its random numbers begin anew."""
        kept = self._seed, self._forwards
        self._seed, self._forwards = torch.initial_seed(), 0
        try:
            with super().another_model() as model:
                yield model
        finally:
            self._seed, self._forwards = kept

    def save_weights(self, path: Path) -> None:
        """See `Side.save_weights`; in memory."""
        self._kept = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def load_weights(self, path: Path) -> None:
        """See `Side.load_weights`; from memory."""
        self.model.load_state_dict(self._kept)

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
