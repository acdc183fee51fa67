"""The single-device forward that a program carries, run under torch's autograd: what the program must equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum

import torch
from torch import Tensor

from ..errors import RunError
from ..philox import Part, draw
from .arguments import fill_in
from .ops import Op, torch_op
from .records import Instruction, Reference

_RAISED = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64}
_RAISED_COMPLEX = {torch.complex64: torch.complex128}


_RANDOM = "stretto.random.default"
"""The op of a reference that draws: its state, a tensor to be shaped as or a size, its number, a threshold or none."""


_BEGIN, _END = "stretto.autocast.begin", "stretto.autocast.end"
"""Around the ops of a region of autocast: a dtype and whether it is on; nothing. Raised floats are not cast by it."""


class Promote(StrEnum):
    """What is done with the dtypes of the reference."""

    NOTHING = "nothing"
    FLOAT64 = "float64"
    """Every floating dtype in it, casts and constants included, is raised to float64."""


def run_reference(
    reference: Reference,
    values: Mapping[tuple[str, str], Tensor],
    inputs: Sequence[Tensor],
    promote: Promote = Promote.NOTHING,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs in order, and the new values of the buffers it changes, by name.

    `values` are all others by (kind, name), the random state too; `inputs` stand in the order of the reference's
    inputs of kind "input". Parameters that require a gradient are differentiated through by the caller. What is given
    is not changed; floats are raised with the rest.
    """
    frame: list[object] = [None] * reference.slots
    queue = iter(inputs)
    for slot, each in enumerate(reference.inputs):
        given = next(queue) if each.kind == "input" else values.get((each.kind, each.name))
        if given is None:
            raise RunError("E0341", f"the reference takes {each.kind} '{each.name}', which was not given")
        tensor = _raised(given) if promote is Promote.FLOAT64 else given
        frame[slot] = tensor.clone() if each.kind == "buffer" else tensor
    with _default_dtype(torch.float64 if promote is Promote.FLOAT64 else torch.get_default_dtype()):
        _run(reference.code, frame, promote)
    outputs = [each for each in reference.outputs if each.kind == "output"]
    buffers = [each for each in reference.outputs if each.kind == "buffer"]
    return (
        [_tensor(frame[each.slot]) for each in sorted(outputs, key=lambda each: each.index)],
        {each.name: _tensor(frame[each.slot]).detach() for each in buffers},
    )


def _run(code: Sequence[Instruction], frame: list[object], promote: Promote) -> None:
    with ExitStack() as stack:
        regions: list[ExitStack] = []
        for instruction in code:
            if instruction.op == _BEGIN:
                dtype, enabled = instruction.args
                regions.append(stack.enter_context(ExitStack()))
                regions[-1].enter_context(_autocast(dtype, bool(enabled)))
            elif instruction.op == _END:
                regions.pop().close()
            else:
                _step(instruction, frame, promote)


def _autocast(dtype: object, enabled: bool) -> torch.autocast:
    assert isinstance(dtype, torch.dtype), "a region has a dtype"
    return torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What torch makes of integers that meet plain floats."""
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


def _step(instruction: Instruction, frame: list[object], promote: Promote) -> None:
    args = [fill_in(value, frame.__getitem__) for value in instruction.args]
    if instruction.op == _RANDOM:
        frame[instruction.writes()[0]] = _draw(*args)
        _free(instruction, frame)
        return
    op = torch_op(instruction.op)
    kwargs = {key: fill_in(value, frame.__getitem__) for key, value in instruction.kwargs.items()}
    if promote is Promote.FLOAT64:
        args = [_raise_dtype(value) for value in args]
        kwargs = {key: _raise_dtype(value) for key, value in kwargs.items()}
    result = op.overload(*args, **kwargs)
    if promote is Promote.FLOAT64 and op.is_factory and _is_low(result):
        result = op.overload(*args, **{**kwargs, "dtype": torch.float64})
    _store(instruction, op, result, frame)
    _free(instruction, frame)


def _free(instruction: Instruction, frame: list[object]) -> None:
    for slot in instruction.free:
        frame[slot] = None


def _draw(state: object, like: object, size: object, number: object, below: object) -> Tensor:
    """The same numbers that all ranks together make."""
    shape = like.shape if isinstance(like, Tensor) else size
    assert isinstance(state, Tensor) and isinstance(shape, list | tuple) and isinstance(number, int)
    return draw(state, number, Part.whole(shape), below if isinstance(below, int) else None)


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
