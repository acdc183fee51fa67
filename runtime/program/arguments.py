"""The JSON form of an instruction's arguments.

null, bool, int, finite float, string and list stand for themselves. {"%": 3} is the value in slot 3,
{"dtype": "float32"} a dtype, {"float": "inf"} (or "-inf", "nan") a float that JSON has no number for, and in references
{"memory_format": "contiguous_format"} a memory format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""A JSON value."""

Value = object
"""A decoded argument: a Python scalar, a string, a dtype, a memory format, a `Slot`, or a list of these."""


@dataclass(frozen=True)
class Slot:
    """A place in a function's frame."""

    index: int


DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128",
        "int64", "int32", "int16", "int8", "uint8", "bool",
    )
}  # fmt: skip
"""The dtypes a program may name."""

MEMORY_FORMATS = {
    name: getattr(torch, name)
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}  # fmt: skip
"""The memory formats that a reference may name."""

_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def dtype_name(dtype: torch.dtype) -> str:
    """The name a program gives a dtype.

    >>> dtype_name(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")


def encode(value: Value) -> Json:
    """The JSON form of an argument. Raises TypeError for a type that has none (a device, a layout, a tensor).

    >>> encode([Slot(2), torch.bfloat16, float("-inf"), 1.5])
    [{'%': 2}, {'dtype': 'bfloat16'}, {'float': '-inf'}, 1.5]
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case Slot(index):
            return {"%": index}
        case torch.dtype():
            return {"dtype": dtype_name(value)}
        case torch.memory_format():
            return {"memory_format": str(value).removeprefix("torch.")}
        case list() | tuple():
            return [encode(item) for item in value]
        case _:
            raise TypeError(f"a program cannot hold an argument of type {type(value).__name__}")


def decode(value: Json) -> Value:
    """The argument that a JSON value stands for. Raises ValueError for JSON that is no argument."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case {"%": int(index)} if len(value) == 1 and index >= 0:
            return Slot(index)
        case {"dtype": str(name)} if len(value) == 1 and name in DTYPES:
            return DTYPES[name]
        case {"memory_format": str(name)} if len(value) == 1 and name in MEMORY_FORMATS:
            return MEMORY_FORMATS[name]
        case {"float": str(name)} if len(value) == 1 and name in _FLOATS:
            return _FLOATS[name]
        case list() | tuple():
            return [decode(item) for item in value]
        case _:
            raise ValueError(f"{value!r} is not an argument")


def slots_in(value: Value) -> Iterator[int]:
    """The slots that a decoded argument reads, left to right."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Slot):
            yield value.index
        elif isinstance(value, list | tuple):
            waiting += reversed(value)


def fill_in(value: Value, lookup: Callable[[int], object]) -> object:
    """A decoded argument in which `lookup(index)` stands in place of each slot."""
    if isinstance(value, Slot):
        return lookup(value.index)
    if isinstance(value, list | tuple):
        return [fill_in(item, lookup) for item in value]
    return value
