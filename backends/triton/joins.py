"""Ops whose elements come from one of several places: joins, padding, lookups by index, and constants."""

from __future__ import annotations

from collections.abc import Callable

from ...runtime.program.arguments import Slot
from ...runtime.program.records import Instruction
from .indexing import Dim, Index, linear, opaque, varies
from .pointwise import literal
from .region import Declined
from .values import Guard, Values, compute_type
from .views import argument, dim_of, moved, operand

Join = Callable[[Values, Instruction, Index, Guard], str]
"""The text of a value at an index."""


def _result(values: Values, instruction: Instruction, slot: int, index: Index, guard: Guard) -> str:
    """An operand's value in the dtype of the result."""
    return values.cast_to(values.value(slot, index, guard), slot, values.region.dtype(instruction.writes()[0]))


def _scalar(values: Values, instruction: Instruction, value: object) -> str:
    """A Python scalar in the dtype of the result."""
    if not isinstance(value, bool | int | float):
        raise Declined(f"{instruction.op} takes {value!r}")
    return literal(value, values.region.dtype(instruction.writes()[0]))


def _inside(values: Values, text: str, dim: Dim, guard: Guard) -> Guard:
    """A guard that also asks for a condition on the index along one dim."""
    depends = varies(dim) | guard.varies
    whole = f"{text} & {guard.name}" if guard.name else text
    return Guard(values.condition(whole, depends), depends)


def _between(own: str, start: int, end: int, extent: int) -> str:
    """That an index in [0, extent) is in [start, end)."""
    bounds = [f"({own} >= {start})"] * (start > 0) + [f"({own} < {end})"] * (end < extent)
    return " & ".join(bounds) or f"({own} >= 0)"


def _cat(values: Values, instruction: Instruction, index: Index, guard: Guard) -> str:
    pieces = [piece.index for piece in instruction.args[0] if isinstance(piece, Slot)]  # type: ignore[attr-defined]
    dim = dim_of(argument(instruction, 1, "dim", 0), len(index))
    own, start, parts = linear(index[dim]), 0, []
    for piece in pieces:
        shape = values.region.shape(piece)
        if shape == (0,):
            continue
        end = start + shape[dim]
        whole = values.region.shape(instruction.writes()[0])[dim]
        inside = _inside(values, _between(own, start, end, whole), index[dim], guard)
        place = (*index[:dim], moved(index[dim], shape[dim], -start), *index[dim + 1 :])
        parts.append((end, _result(values, instruction, piece, place, inside)))
        start = end
    text = parts[-1][1]
    for end, part in reversed(parts[:-1]):
        text = f"tl.where({own} < {end}, {part}, {text})"
    return text


def _pad(values: Values, instruction: Instruction, index: Index, guard: Guard) -> str:
    source = operand(instruction)
    shape, pads = values.region.shape(source), list(instruction.args[1])  # type: ignore[call-overload]
    fill = _scalar(values, instruction, argument(instruction, 2, "value", 0) or 0)
    place, conditions, depends = list(index), [], frozenset[str]()
    for k in range(len(pads) // 2):
        dim = len(shape) - 1 - k
        before, after = pads[2 * k : 2 * k + 2]
        if before == 0 and after == 0:
            continue
        own = linear(index[dim])
        conditions.append(_between(own, before, before + shape[dim], before + shape[dim] + after))
        depends |= varies(index[dim])
        place[dim] = moved(index[dim], shape[dim], -before)
    if not conditions:
        return _result(values, instruction, source, index, guard)
    text = " & ".join([*conditions, *([guard.name] if guard.name else [])])
    inside = Guard(values.condition(text, depends | guard.varies), depends | guard.varies)
    return f"tl.where({inside.name}, {_result(values, instruction, source, tuple(place), inside)}, {fill})"


def _lookup(values: Values, slot: int, place: Index, extent: int, guard: Guard) -> tuple[Dim, Guard]:
    """The index that a value gives along a dim of `extent` elements, and a guard against indices outside it."""
    found = values.value(slot, place, guard)
    depends = frozenset().union(*(varies(dim) for dim in place)) | guard.varies
    text = f"({found} >= 0) & ({found} < {extent})"
    whole = f"{text} & {guard.name}" if guard.name else text
    inside = Guard(values.condition(whole, depends), depends)
    return opaque(found, extent, depends), inside


def _gather(values: Values, instruction: Instruction, index: Index, guard: Guard) -> str:
    source, indices = operand(instruction), operand(instruction, 2)
    dim = dim_of(instruction.args[1], len(index))
    found, inside = _lookup(values, indices, index, values.region.shape(source)[dim], guard)
    return _result(values, instruction, source, (*index[:dim], found, *index[dim + 1 :]), inside)


def _embedding(values: Values, instruction: Instruction, index: Index, guard: Guard) -> str:
    weight, indices = operand(instruction), operand(instruction, 1)
    found, inside = _lookup(values, indices, index[:-1], values.region.shape(weight)[0], guard)
    return _result(values, instruction, weight, (found, index[-1]), inside)


def _scatter(values: Values, instruction: Instruction, index: Index, guard: Guard) -> str:
    """One index along the dim: an element is hit where its own index is the one that the value says."""
    base, indices = operand(instruction), operand(instruction, 2)
    dim, source = dim_of(instruction.args[1], len(index)), instruction.args[3]
    region = values.region
    expected = tuple(1 if place == dim else extent for place, extent in enumerate(region.shape(base)))
    of_source = region.shape(source.index) if isinstance(source, Slot) else expected
    if region.shape(indices) != expected or of_source != expected:
        raise Declined(f"{instruction.op} writes several elements along the dim")
    at_row = (*index[:dim], (), *index[dim + 1 :])
    hit = f"({values.value(indices, at_row, guard)} == {linear(index[dim])})"
    before = _result(values, instruction, base, index, guard)
    written = (
        _result(values, instruction, source.index, at_row, guard)
        if isinstance(source, Slot)
        else _scalar(values, instruction, source)
    )
    added = f"{before} + {written}" if "add" in instruction.op else written
    return f"tl.where({hit}, {added}, {before})"


def _constant(values: Values, instruction: Instruction, index: Index, guard: Guard) -> str:
    name = instruction.op.split(".")[1]
    slot = instruction.writes()[0]
    stated = {"zeros": 0, "zeros_like": 0, "ones": 1, "ones_like": 1}.get(name)
    if stated is None:
        stated = instruction.args[0] if name == "scalar_tensor" else argument(instruction, 1, "fill_value")  # type: ignore[assignment]
    if isinstance(stated, Slot):
        return _result(values, instruction, stated.index, (), guard)
    return f"tl.full([], {_scalar(values, instruction, stated)}, {compute_type(values.region.dtype(slot))})"


def _arange(values: Values, instruction: Instruction, index: Index, guard: Guard) -> str:
    numbers = [value for value in instruction.args if isinstance(value, int | float)]
    start, step = (0, 1) if len(numbers) == 1 else (numbers[0], numbers[2] if len(numbers) > 2 else 1)
    slot = instruction.writes()[0]
    type_ = compute_type(values.region.dtype(slot))
    if not index or not index[0]:
        return f"tl.full([], {start}, {type_})"
    return f"({linear(index[0])}).to({type_}) * {step} + {start}"


JOINS: dict[str, Join] = {
    "cat": _cat, "constant_pad_nd": _pad, "gather": _gather, "embedding": _embedding, "scatter_add": _scatter,
    "scatter": _scatter, "full": _constant, "full_like": _constant, "zeros": _constant, "zeros_like": _constant,
    "ones": _constant, "ones_like": _constant, "scalar_tensor": _constant, "arange": _arange,
}  # fmt: skip
"""By torch's name without the overload."""
