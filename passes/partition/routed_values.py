"""What is known of values whose rows go to the ranks of their experts: their bytes, and rows that need not be sent."""

from __future__ import annotations

from ...ir.bindings import Value
from ...ir.operations import Call
from ...ir.types import TensorType, element_bytes, from_mlir
from ..rewriting import producer

_FULL, _RESHAPE = "aten.full.default", "aten.reshape.default"


def same_in_all_rows(value: Value) -> Call | None:
    """The operation that fills a value with one number; None for another value."""
    made = producer(value)
    while made is not None and made.name == "comm.shard":
        made = producer(made.args[0])
    return made if made is not None and made.name == _FULL else None


def row_bytes(value: Value, rows: tuple[int, ...]) -> int:
    """The bytes of one row of a value, whose leading dims are `rows`."""
    type_ = from_mlir(value.type)
    return element_bytes(TensorType(type_.dtype, type_.shape[len(rows) :]))


def repeated(value: Value) -> Value | None:
    """What a value repeats each row of, several times in a row: (T, H) of (T * k, H)."""
    flat = producer(value)
    expanded = producer(flat.args[0]) if flat is not None and flat.name == _RESHAPE else None
    if flat is None or expanded is None or expanded.name != "aten.expand.default":
        return None
    column = producer(expanded.args[0])
    if column is None or column.name != "aten.unsqueeze.default":
        return None
    source = column.args[0]
    shapes = [from_mlir(v.type).shape for v in (source, flat.args[0], value)]
    tokens, apart, merged = shapes
    fits = apart[:-2] == tokens[:-1] and apart[-1] == tokens[-1] == merged[-1] and len(tokens) == 2
    return source if fits and len(apart) == 3 and column.args[1] in (1, -2) else None
