"""What an operation by elements makes of what is known of its operands."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from math import inf
from typing import Any

import torch

from ...ir.types import TensorType
from .known import EVERYWHERE, UNKNOWN, Cases, Known, Ramp, Scalar, cases, everywhere, signs

Element = Callable[..., Scalar | None]
"""One element of the result from those of the operands."""

Operand = Known | Scalar | None
"""What is known of an operand of an operation by elements; None: nothing."""


def compared(name: str, one: Known | None, other: Known | None) -> Known | None:
    """The cases of a comparison of two ramps of the same dims."""
    difference = added(one, other, -1)
    if not isinstance(difference, Ramp):
        return None
    steps, where = signs(difference)
    holds = {"lt": ["below"], "le": ["below", "at"], "eq": ["at"], "ne": ["below", "above"]}
    holds |= {"ge": ["at", "above"], "gt": ["above"]}
    return cases(steps, [(sign in holds[name], interval) for sign, interval in where.items()])


def added(one: Known | None, other: Known | None, factor: int) -> Known | None:
    """A ramp plus a factor times another of the same dims."""
    if not isinstance(one, Ramp) or not isinstance(other, Ramp):
        return None
    steps = tuple(a + factor * b for a, b in zip(one.steps, other.steps, strict=True))
    return Ramp(steps, one.constant + factor * other.constant)


def _scaled(ramp: Known | None, factor: int) -> Known | None:
    """A ramp times a whole number."""
    if not isinstance(ramp, Ramp):
        return None
    return Ramp(tuple(step * factor for step in ramp.steps), ramp.constant * factor)


def by_elements(element: Element, operands: Sequence[Known | None], rank: int) -> Cases:
    """The cases of the result, by the position of the operand whose position depends on most dims.

    Of another operand with another position only its values are used, as if each could be everywhere.
    """
    given = [_as_cases(each, rank) for each in operands]
    steps = max(given, key=lambda each: each.dims).steps
    choices = [each.where if each.steps == steps else [(v, EVERYWHERE) for v, _ in each.where] for each in given]
    found = []
    for combination in product(*choices):
        interval = EVERYWHERE
        for _, own in combination:
            interval = interval & own
        if interval:
            values = [value for value, _ in combination]
            found += [(value, interval) for value in _results(element, values)]
    return cases(steps, found)


def _as_cases(known: Known | None, rank: int) -> Cases:
    if isinstance(known, Cases):
        return known
    value = known.constant if isinstance(known, Ramp) and not any(known.steps) else UNKNOWN
    return cases((0,) * rank, [(value, EVERYWHERE)])


def _results(element: Element, values: Sequence[Scalar | None]) -> list[Scalar | None]:
    """The values that the result may have: two where a choice depends on a condition that is not known.

    A result that is not a number is not followed.
    """
    if element is _chosen and values[0] is UNKNOWN:
        return [*values[1:]]
    result = element(*values)
    return [UNKNOWN if result != result else result]


def _chosen(condition: Scalar | None, one: Scalar | None, other: Scalar | None) -> Scalar | None:
    return one if condition else other


def _and(one: Scalar | None, other: Scalar | None) -> Scalar | None:
    if one is False or other is False:
        return False
    return one & other if isinstance(one, int) and isinstance(other, int) else UNKNOWN


def _or(one: Scalar | None, other: Scalar | None) -> Scalar | None:
    if one is True or other is True:
        return True
    return one | other if isinstance(one, int) and isinstance(other, int) else UNKNOWN


def _sum(one: Scalar | None, other: Scalar | None) -> Scalar | None:
    """What is not known is taken to be finite: beside -inf it changes nothing."""
    if -inf in (one, other) and UNKNOWN in (one, other):
        return -inf
    return UNKNOWN if one is UNKNOWN or other is UNKNOWN else one + other


def _least(one: Scalar | None, other: Scalar | None) -> Scalar | None:
    if -inf in (one, other):
        return -inf
    return UNKNOWN if one is UNKNOWN or other is UNKNOWN else min(one, other)


def _of_known(function: Callable[..., Scalar]) -> Element:
    """A function that says nothing where an operand is not known."""
    return lambda *values: UNKNOWN if UNKNOWN in values else function(*values)


def converted(value: Scalar | None, dtype: torch.dtype) -> Scalar | None:
    """The value in another dtype."""
    return UNKNOWN if value is UNKNOWN else torch.tensor(value, dtype=torch.float64).to(dtype).item()


ELEMENTS: Mapping[str, Element] = {
    **{f"bitwise_and.{kind}": _and for kind in ("Tensor", "Scalar")},
    **{f"bitwise_or.{kind}": _or for kind in ("Tensor", "Scalar")},
    "logical_and.default": lambda a, b: _and(_truth(a), _truth(b)),
    "logical_or.default": lambda a, b: _or(_truth(a), _truth(b)),
    "logical_not.default": _of_known(operator.not_),
    "minimum.default": _least,
    **{f"add.{kind}": _sum for kind in ("Tensor", "Scalar")},
    **{f"sub.{kind}": _of_known(operator.sub) for kind in ("Tensor", "Scalar")},
    **{f"mul.{kind}": _of_known(operator.mul) for kind in ("Tensor", "Scalar")},
    "neg.default": _of_known(operator.neg),
    **{
        f"{name}.{kind}": _of_known(getattr(operator, name))
        for name in ("lt", "le", "eq", "ne", "ge", "gt")
        for kind in ("Tensor", "Scalar")
    },
    **{f"where.{kind}": _chosen for kind in ("self", "ScalarSelf", "ScalarOther", "Scalar")},
    "rsub.Scalar": _of_known(lambda a, b: b - a),
}
"""By name without `aten.`, one element of the result; operands in the order of the schema."""


def _truth(value: Scalar | None) -> Scalar | None:
    return UNKNOWN if value is UNKNOWN else bool(value)


def _of_integers(base: str, known: Sequence[Known | None]) -> Known | None:
    """The ramp of an operation on integers."""
    if base == "neg":
        return _scaled(known[0], -1)
    if base != "mul":
        one, other = known if base != "rsub" else reversed(known)
        return added(one, other, 1 if base == "add" else -1)
    flat = next((each for each in known if isinstance(each, Ramp) and not any(each.steps)), None)
    return None if flat is None else _scaled(known[1] if known[0] is flat else known[0], flat.constant)


def result(name: str, arguments: Mapping[str, Any], operands: Mapping[str, Operand], out: TensorType) -> Known | None:
    """What is known of the result of an operation by elements; None for nothing, or another operation.

    `operands` has what is known of those arguments that are tensors or numbers, with the dims of the result.
    """
    rank = len(out.shape)
    known = [everywhere(v, rank) if isinstance(v, bool | int | float) else v for v in operands.values()]
    base = name.partition(".")[0]
    if base in ("add", "sub", "rsub") and arguments.get("alpha", 1) != 1:
        return None
    if base in ("lt", "le", "eq", "ne", "ge", "gt") and (ramps := compared(base, *known)) is not None:
        return ramps
    if not out.dtype.is_floating_point and out.dtype != torch.bool and base in ("add", "sub", "rsub", "neg", "mul"):
        return _of_integers(base, known)
    if out.dtype == torch.bool and base == "mul":
        return by_elements(_and, known, rank)
    if name == "_to_copy.default":
        dtype = out.dtype
        if isinstance(known[0], Ramp) and not dtype.is_floating_point and dtype != torch.bool:
            return known[0]
        return by_elements(partial(converted, dtype=dtype), known, rank)
    if name.startswith("masked_fill."):
        return by_elements(_chosen, [known[1], known[2], known[0]], rank)
    if name == "bitwise_not.default":
        return by_elements(_of_known(operator.not_), known, rank) if out.dtype == torch.bool else None
    return by_elements(ELEMENTS[name], known, rank) if name in ELEMENTS else None


NAMES = frozenset({*ELEMENTS, "_to_copy.default", "bitwise_not.default", "masked_fill.Scalar", "masked_fill.Tensor"})
"""The operations by elements that are followed."""
