"""The single-device reference of a program, run under torch's autograd: checks compare the program with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ..errors import RunError
from ..philox import Part, draw
from .arguments import fill_in
from .ops import Op, torch_op
from .records import Instruction
from .reference_functions import CUSTOM_FUNCTION, call_custom_function
from .reference_records import Reference

_RAISED = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64}
_RAISED_COMPLEX = {torch.complex64: torch.complex128}


RANDOM = "stretto.random.default"
"""The random op of a reference. Arguments: RNG state, a tensor with the result's shape or None, the shape or None, the
op's index, a threshold or None."""


AUTOCAST_BEGIN, AUTOCAST_END = "stretto.autocast.begin", "stretto.autocast.end"
"""Around the ops of an autocast region. `begin` takes a dtype and whether autocast is enabled. float64 is not cast."""


_STATISTICS = frozenset({"running_mean", "running_var"})
"""Arguments that batch norms write to in training, which their schemas do not say."""
_UPDATES_STATISTICS = ("training", "use_input_stats")


class Promote(StrEnum):
    """What to do with the dtypes of the reference."""

    NOTHING = "nothing"
    FLOAT64 = "float64"
    """Every floating dtype in it, casts and constants included, is raised to float64."""


Draw = Callable[[Tensor, int, Sequence[int], int | None], Tensor]
"""The random numbers of a whole tensor: of an RNG state, the random op's index, a shape and a threshold."""


def draw_of_program(state: Tensor, op_index: int, shape: Sequence[int], below: int | None) -> Tensor:
    """As the ranks of a program draw."""
    return draw(state, op_index, Part.whole(shape), below)


def run_reference(
    reference: Reference,
    values: Mapping[tuple[str, str], Tensor],
    inputs: Sequence[Tensor],
    promote: Promote = Promote.NOTHING,
    draw_whole: Draw = draw_of_program,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs in order, and the new values of the buffers it changes, by name.

    `inputs` are those of kind "input" in the reference's order; `values` are all others by (kind, name), with the RNG
    state. The caller differentiates through parameters that require a gradient. The tensors given are
    not written to; with `Promote.FLOAT64` their floating dtypes are raised, too. Random ops draw by `draw_whole`.
    """
    frame: list[object] = [None] * reference.slots
    remaining_inputs = iter(inputs)
    for slot, argument in enumerate(reference.inputs):
        is_input = argument.kind == "input"
        value = next(remaining_inputs) if is_input else values.get((argument.kind, argument.name))
        if value is None:
            raise RunError("E0341", f"the reference takes {argument.kind} '{argument.name}', but none was given")
        tensor = _raised(value) if promote is Promote.FLOAT64 else value
        frame[slot] = tensor.clone() if argument.kind == "buffer" else tensor
    given = _storages(frame[slot] for slot, argument in enumerate(reference.inputs) if argument.kind != "buffer")
    _Runner(reference, promote, given, draw_whole).run(reference.code, frame)
    outputs = [output for output in reference.outputs if output.kind == "output"]
    buffers = [output for output in reference.outputs if output.kind == "buffer"]
    return (
        [_tensor(frame[output.slot]) for output in sorted(outputs, key=lambda output: output.index)],
        {buffer.name: _tensor(frame[buffer.slot]).detach() for buffer in buffers},
    )


@dataclass(frozen=True)
class _Runner:
    """Runs instructions of a reference."""

    reference: Reference
    promote: Promote
    given: Set[int]
    """The memory of the caller's tensors."""
    draw_whole: Draw

    def run(self, code: Sequence[Instruction], frame: list[object]) -> None:
        """Run them on a frame."""
        dtype = torch.float64 if self.promote is Promote.FLOAT64 else torch.get_default_dtype()
        with _default_dtype(dtype), ExitStack() as stack:
            regions: list[ExitStack] = []
            for instruction in code:
                if instruction.op == AUTOCAST_BEGIN:
                    region_dtype, enabled = instruction.args
                    regions.append(stack.enter_context(ExitStack()))
                    regions[-1].enter_context(_autocast(region_dtype, bool(enabled)))
                elif instruction.op == AUTOCAST_END:
                    regions.pop().close()
                elif instruction.op == RANDOM:
                    args = [fill_in(value, frame.__getitem__) for value in instruction.args]
                    frame[instruction.writes()[0]] = _random_numbers(self.draw_whole, *args)
                    _free(instruction, frame)
                elif instruction.op == CUSTOM_FUNCTION:
                    self._call(instruction, frame)
                else:
                    _step(instruction, frame, self.promote, self.given)

    def _call(self, instruction: Instruction, frame: list[object]) -> None:
        index, *operands = [fill_in(value, frame.__getitem__) for value in instruction.args]
        assert isinstance(index, int), "a function has an index"
        outputs = call_custom_function(self.reference.functions[index], operands, self.run)
        for slot, value in zip(instruction.out, outputs, strict=True):
            if slot is not None:
                frame[slot] = value
        _free(instruction, frame)


def _autocast(dtype: object, enabled: bool) -> torch.autocast:
    assert isinstance(dtype, torch.dtype), "a region has a dtype"
    return torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype, to which integers promote with Python floats."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def raised_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for a floating dtype, complex128 for a complex one, else the dtype itself."""
    return _RAISED.get(dtype) or _RAISED_COMPLEX.get(dtype, dtype)


def _raised(tensor: Tensor) -> Tensor:
    return tensor.to(raised_dtype(tensor.dtype))


def _step(instruction: Instruction, frame: list[object], promote: Promote, given: Set[int]) -> None:
    args = [fill_in(value, frame.__getitem__) for value in instruction.args]
    op = torch_op(instruction.op)
    kwargs = {key: fill_in(value, frame.__getitem__) for key, value in instruction.kwargs.items()}
    if promote is Promote.FLOAT64:
        args = [_raise_dtype(value) for value in args]
        kwargs = {key: _raise_dtype(value) for key, value in kwargs.items()}
    if op.only_in_references:
        _refuse_writes(op, args, kwargs, given)
    result = op.overload(*args, **kwargs)
    if promote is Promote.FLOAT64 and op.is_factory and _is_low(result):
        result = op.overload(*args, **{**kwargs, "dtype": torch.float64})
    _store(instruction, op, result, frame)
    _free(instruction, frame)


def _refuse_writes(op: Op, args: Sequence[object], kwargs: Mapping[str, object], given: Set[int]) -> None:
    """Raise RunError E0343 where an op would write to a tensor of the caller, also through a view of it."""
    names = [argument.name for argument in op.overload._schema.arguments]
    bound = {**dict(zip(names, args, strict=False)), **kwargs}
    is_training = any(bound.get(name) is True for name in _UPDATES_STATISTICS)
    written = [argument.name for argument in op.overload._schema.arguments if _is_written(argument, is_training)]
    if _storages(bound.get(name) for name in written) & given:
        raise RunError(
            "E0343",
            f"the reference calls '{op.name}' to write to a parameter, an input or a constant of the caller",
            expected="writes to buffers, which it has copies of, and to values that it computed",
            help="compile the program again",
        )


def _is_written(argument: torch.Argument, is_training: bool) -> bool:
    annotated = argument.alias_info is not None and argument.alias_info.is_write
    return annotated or (is_training and argument.name in _STATISTICS)


def _storages(values: Iterable[object]) -> set[int]:
    return {int(value.untyped_storage()._cdata) for value in values if isinstance(value, Tensor)}


def _free(instruction: Instruction, frame: list[object]) -> None:
    for slot in instruction.free:
        frame[slot] = None


def _random_numbers(
    draw_whole: Draw, state: object, like: object, size: object, op_index: object, below: object
) -> Tensor:
    """The random numbers of a random op: the same elements that the ranks compute."""
    shape = like.shape if isinstance(like, Tensor) else size
    assert isinstance(state, Tensor) and isinstance(shape, list | tuple) and isinstance(op_index, int)
    return draw_whole(state, op_index, shape, below if isinstance(below, int) else None)


def _store(instruction: Instruction, op: Op, result: object, frame: list[object]) -> None:
    if op.gives_list and isinstance(result, list | tuple):
        for slot, value in zip(instruction.out, result, strict=True):
            if slot is not None:
                frame[slot] = value
    elif instruction.writes():
        frame[instruction.writes()[0]] = result


def _raise_dtype(value: object) -> object:
    return raised_dtype(value) if isinstance(value, torch.dtype) else value


def _is_low(value: object) -> bool:
    return isinstance(value, Tensor) and raised_dtype(value.dtype) != value.dtype


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor), "the reference's outputs are tensors"
    return value
