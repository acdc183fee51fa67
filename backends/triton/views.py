"""Torch's views, joins and index ops: which element of an operand an element of the result is."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ...runtime.program.arguments import Slot
from ...runtime.program.records import Instruction
from .indexing import Dim, Index, broadcast, flat, linear, opaque, regroup, varies
from .region import Region

RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze"})
"""They keep elements in order."""
COPIES = frozenset({"clone", "alias", "detach", "contiguous"})

Source = Callable[[Region, Instruction, Index], Index]
"""From the index of a result's element, that of the operand's element."""


def source_index(region: Region, instruction: Instruction, index: Index) -> Index | None:
    """The index of the first operand's element that a view's element at `index` is; None for an op that is no view."""
    name = instruction.op.split(".")[1]
    if name in RESHAPES:
        return regroup(flat(index), region.shape(operand(instruction)))
    if name in COPIES:
        return index
    rule = _RULES.get(name)
    return None if rule is None else rule(region, instruction, index)


def operand(instruction: Instruction, position: int = 0) -> int:
    """The slot of an operand."""
    value = instruction.args[position]
    assert isinstance(value, Slot)
    return value.index


def argument(instruction: Instruction, position: int, name: str, default: object = None) -> object:
    """An argument by position or by name."""
    if len(instruction.args) > position:
        return instruction.args[position]
    return instruction.kwargs.get(name, default)


def dim_of(value: object, rank: int) -> int:
    """A dim counted from the front."""
    assert isinstance(value, int)
    return value % rank if rank else 0


def _expand(region: Region, instruction: Instruction, index: Index) -> Index:
    return broadcast(index, region.shape(operand(instruction)))


def _permute(region: Region, instruction: Instruction, index: Index) -> Index:
    dims = argument(instruction, 1, "dims")
    assert isinstance(dims, list | tuple)
    own: dict[int, Dim] = {dim_of(dim, len(index)): index[place] for place, dim in enumerate(dims)}
    return tuple(own[dim] for dim in range(len(index)))


def _transpose(region: Region, instruction: Instruction, index: Index) -> Index:
    name = instruction.op.split(".")[1]
    first, second = (0, 1) if name == "t" else instruction.args[1:3]
    swapped = list(index)
    if len(index) > 1:
        a, b = dim_of(first, len(index)), dim_of(second, len(index))
        swapped[a], swapped[b] = swapped[b], swapped[a]
    return tuple(swapped)


def _slice(region: Region, instruction: Instruction, index: Index) -> Index:
    shape = region.shape(operand(instruction))
    dim = dim_of(argument(instruction, 1, "dim", 0), len(shape))
    start, step = argument(instruction, 2, "start"), argument(instruction, 4, "step", 1)
    begin = 0 if start is None else int(start)  # type: ignore[call-overload]
    begin = min(max(begin + shape[dim] if begin < 0 else begin, 0), shape[dim])
    return (*index[:dim], moved(index[dim], shape[dim], begin, int(step)), *index[dim + 1 :])  # type: ignore[call-overload]


def _select(region: Region, instruction: Instruction, index: Index) -> Index:
    shape = region.shape(operand(instruction))
    dim = dim_of(argument(instruction, 1, "dim"), len(shape))
    position = dim_of(argument(instruction, 2, "index"), shape[dim])
    return (*index[:dim], opaque(str(position), shape[dim], frozenset()), *index[dim:])


def _flip(region: Region, instruction: Instruction, index: Index) -> Index:
    dims = argument(instruction, 1, "dims")
    assert isinstance(dims, list | tuple)
    shape, flipped = region.shape(operand(instruction)), list(index)
    for dim in (dim_of(each, len(shape)) for each in dims):
        flipped[dim] = moved(index[dim], shape[dim], shape[dim] - 1, -1)
    return tuple(flipped)


def moved(dim: Dim, extent: int, start: int, step: int = 1) -> Dim:
    """The index `start + step * i` along a dim of `extent` elements, for an index i along another."""
    if start == 0 and step == 1 and prod(term.extent for term in dim) == extent:
        return dim
    text = linear(dim) if step == 1 else f"({linear(dim)}) * {step}"
    return opaque(f"({text} {'-' if start < 0 else '+'} {abs(start)})" if start else text, extent, varies(dim))


_RULES: dict[str, Source] = {
    "expand": _expand, "permute": _permute, "transpose": _transpose, "t": _transpose, "slice": _slice,
    "select": _select, "flip": _flip,
}  # fmt: skip

VIEWS = RESHAPES | COPIES | frozenset(_RULES)
"""By torch's name without the overload: each element of the result is one element of the first operand."""
