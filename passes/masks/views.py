"""What is known of a tensor through views, and of tensors that are made of nothing: counted, filled, triangular."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ...ir.dim_groups import dim_groups
from ...ir.types import TensorType
from .elementwise import ELEMENTS, by_elements, compared, converted
from .known import Known, Ramp, everywhere

Shape = tuple[int, ...]
Arguments = Mapping[str, Any]

SAME = frozenset({"clone.default", "alias.default", "detach.default", "lift_fresh_copy.default", "contiguous.default"})
"""Operations that give their operand again, by name without `aten.`."""

_RESHAPES = ("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_copy")
_FILLED = {"zeros": 0, "ones": 1, "zeros_like": 0, "ones_like": 1, "new_zeros": 0, "new_ones": 1}


def moved(known: Known, steps: Sequence[int], constant: int, shape: Shape) -> Known:
    """What is known of a tensor of `shape` whose position is `constant` plus the sum of `steps` times the index."""
    own = tuple(0 if extent == 1 else step for step, extent in zip(steps, shape, strict=True))
    return Ramp(own, constant) if isinstance(known, Ramp) else known.moved(own, constant)


def broadcast(known: Known | None, shape: Shape) -> Known | None:
    """The same with the dims of a result that the tensor is broadcast to."""
    if known is None:
        return None
    return moved(known, (*[0] * (len(shape) - len(known.steps)), *known.steps), _constant(known), shape)


def view(name: str, arguments: Arguments, known: Known, before: Shape, after: Shape) -> Known | None:
    """What is known of a view of a tensor; None for nothing, or another operation."""
    base, steps, constant = name.partition(".")[0], list(known.steps), _constant(known)
    if name in SAME:
        return known
    if base == "expand":
        return broadcast(known, after)
    if base in _RESHAPES:
        reshaped = _reshaped(known.steps, before, after)
        return None if reshaped is None else moved(known, reshaped, constant, after)
    if base in ("permute", "transpose", "t"):
        order = _order(base, arguments, len(before))
        return moved(known, [steps[d] for d in order], constant, after)
    along = int(arguments.get("dim", 0)) % max(len(before), 1)
    if name == "slice.Tensor":
        start, stride = arguments.get("start") or 0, arguments.get("step", 1)
        constant += steps[along] * max(0, min(start + before[along] * (start < 0), before[along]))
        steps[along] *= stride
        return moved(known, steps, constant, after)
    if name == "select.int":
        constant += steps.pop(along) * (int(arguments["index"]) % before[along])
        return moved(known, steps, constant, after)
    return None


def made(name: str, arguments: Arguments, out: TensorType) -> Known | None:
    """What is known of a tensor that is counted, or filled with one number."""
    base, rank = name.partition(".")[0], len(out.shape)
    if base == "arange":
        start, step = arguments.get("start", 0), arguments.get("step", 1)
        is_whole = isinstance(start, int) and isinstance(step, int) and not out.dtype.is_floating_point
        return moved(Ramp((step,), start), [step], start, out.shape) if is_whole else None
    if base in _FILLED:
        value: Any = _FILLED[base]
    elif base in ("full", "full_like", "new_full"):
        value = arguments.get("fill_value")
    elif base == "scalar_tensor":
        value = arguments.get("s")
    else:
        return None
    return everywhere(converted(value, out.dtype), rank) if isinstance(value, bool | int | float) else None


def triangular(name: str, arguments: Arguments, known: Known | None, shape: Shape) -> Known | None:
    """What tril and triu keep: elements on one side of a diagonal; the others are 0."""
    base, rank, diagonal = name.partition(".")[0], len(shape), int(arguments.get("diagonal", 0))
    if base not in ("tril", "triu") or rank < 2:
        return None
    steps = moved(Ramp((), 0), (*[0] * (rank - 2), -1, 1), -diagonal, shape)
    kept = compared("le" if base == "tril" else "ge", steps, everywhere(0, rank))
    return by_elements(ELEMENTS["where.self"], [kept, known, everywhere(0, rank)], rank)


def indexed(base: Known | None, indices: Sequence[Known | None], rank: int, out: Shape) -> Known | None:
    """A ramp at indices that are ramps, one for each dim of it: their composition."""
    if isinstance(base, Ramp) and not any(base.steps):
        return Ramp((0,) * len(out), base.constant)
    if not isinstance(base, Ramp) or len(indices) != rank:
        return None
    steps, constant = [0] * len(out), base.constant
    for step, index in zip(base.steps, indices, strict=True):
        of_result = broadcast(index, out)
        if step and not isinstance(of_result, Ramp):
            return None
        if isinstance(of_result, Ramp):
            steps = [a + step * b for a, b in zip(steps, of_result.steps, strict=True)]
            constant += step * of_result.constant
    return moved(base, steps, constant, out)


def joined(parts: Sequence[tuple[Known | None, Shape]], along: int, out: Shape) -> Known | None:
    """Ramps one after the other that are one ramp; a part of extent 1 fits any step."""
    along %= len(out)
    ramps, start = [], 0
    for known, shape in parts:
        if not isinstance(known, Ramp):
            return None
        ramps.append((known, start, shape[along]))
        start += shape[along]
    step = next((ramp.steps[along] for ramp, _, extent in ramps if extent > 1), None)
    first = ramps[0][0]
    if step is None:
        step = ramps[1][0].constant - first.constant if len(ramps) > 1 else 0
    steps = (*first.steps[:along], step, *first.steps[along + 1 :])
    for ramp, begin, extent in ramps:
        others = [s for d, s in enumerate(ramp.steps) if d != along]
        if others != [s for d, s in enumerate(steps) if d != along] or (extent > 1 and ramp.steps[along] != step):
            return None
        if extent and ramp.constant != first.constant + step * begin:
            return None
    return moved(first, steps, first.constant, out)


def _constant(known: Known) -> int:
    return known.constant if isinstance(known, Ramp) else 0


def _order(base: str, arguments: Arguments, rank: int) -> list[int]:
    """By dim of the result, the dim of the operand."""
    if base == "permute":
        return [int(d) % rank for d in arguments["dims"]]
    order = list(range(rank))
    if base == "t":
        return order[::-1]
    one, other = (int(arguments[name]) % rank for name in ("dim0", "dim1"))
    order[one], order[other] = order[other], order[one]
    return order


def _reshaped(steps: Shape, before: Shape, after: Shape) -> list[int] | None:
    """The steps of a reshape; None where dims are merged that do not grow evenly."""
    found = [0] * len(after)
    for own, others in dim_groups(before, after):
        step = steps[own[-1]]
        if any(steps[d] != step * prod(before[e] for e in own if e > d) for d in own):
            return None
        for d in others:
            found[d] = step * prod(after[e] for e in others if e > d)
    return found
