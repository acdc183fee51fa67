"""Convert Python constants (scalars, lists, dtypes, dicts) to MLIR attributes and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..dsl.precision import FloatFormat
from .bindings import Attribute, mlir
from .dialects.context import context
from .types import dtype_from_text, dtype_text

Constant = bool | int | float | str | torch.dtype | tuple["Constant", ...] | list[Any] | dict[str, Any]


def to_attribute(value: Constant) -> Attribute:
    """The attribute of a constant: i1, i64, f64, string, type, or an array of these."""
    ctx = context()
    if isinstance(value, bool):
        return mlir.BoolAttr.get(value, ctx)
    if isinstance(value, int):
        return mlir.IntegerAttr.get(mlir.IntegerType.get_signless(64, ctx), value)
    if isinstance(value, float):
        with mlir.Location.unknown(ctx):
            return mlir.FloatAttr.get(mlir.F64Type.get(ctx), value)
    if isinstance(value, str):
        return mlir.StringAttr.get(value, ctx)
    if isinstance(value, torch.dtype):
        return mlir.TypeAttr.get(mlir.Type.parse(dtype_text(value), ctx), ctx)
    if isinstance(value, (tuple, list)):
        if value and all(type(v) is int for v in value):
            return mlir.DenseI64ArrayAttr.get(list(value), ctx)
        return mlir.ArrayAttr.get([to_attribute(v) for v in value], ctx)
    if isinstance(value, dict):
        return mlir.DictAttr.get({key: to_attribute(v) for key, v in value.items()}, ctx)
    raise TypeError(f"a constant of type {type(value).__name__} cannot be an attribute: {value!r}")


def from_attribute(attribute: Attribute) -> Any:
    """The Python constant of an attribute that `to_attribute` made."""
    read = _READERS.get(type(attribute))
    if read is None:
        raise TypeError(f"attribute {attribute} is not one that Stretto writes")
    return read(attribute)


_READERS: dict[type[Attribute], Callable[[Attribute], Any]] = {
    mlir.BoolAttr: lambda attribute: bool(attribute.value),
    mlir.IntegerAttr: lambda attribute: int(attribute.value),
    mlir.FloatAttr: lambda attribute: attribute.value,
    mlir.StringAttr: lambda attribute: attribute.value,
    mlir.TypeAttr: lambda attribute: dtype_from_text(str(attribute.value)),
    mlir.DenseI64ArrayAttr: list,
    mlir.ArrayAttr: lambda attribute: [from_attribute(each) for each in attribute],
    mlir.DictAttr: lambda attribute: {entry.name: from_attribute(entry.attr) for entry in attribute},
}
"""By the class of an attribute: compiles read millions of them, so that a chain of `isinstance` shows."""


DTYPES = {
    FloatFormat.FP64: torch.float64,
    FloatFormat.FP32: torch.float32,
    FloatFormat.BF16: torch.bfloat16,
    FloatFormat.FP16: torch.float16,
}


def dtype_of(format: FloatFormat | None) -> torch.dtype | None:
    """The torch dtype of a format; None for None.

    >>> dtype_of(FloatFormat.BF16)
    torch.bfloat16
    """
    return None if format is None else DTYPES[format]


def format_name(dtype: torch.dtype) -> str:
    """The plan language's name of a dtype, else torch's.

    >>> format_name(torch.float32)
    'fp32'
    """
    names = {known: str(format) for format, known in DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))
