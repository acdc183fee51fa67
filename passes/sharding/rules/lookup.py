"""Which placements an op can run with: the rows of a call, for one mesh axis.

Our own table comes first: it holds what DTensor lacks, or answers for another purpose. What it does not name is asked
of DTensor's registered strategies. What neither knows runs replicated, and `Rules.known` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from . import dtensor, table
from .builders import finish
from .call import Call, bind
from .strategy import Lowering, Row, Rules, TensorMeta, Tie

__all__ = ["Lowering", "Row", "Rules", "TensorMeta", "Tie", "rows"]

_Items = tuple[tuple[str, object], ...]


def rows(
    op: str, args: tuple[object, ...], kwargs: Mapping[str, object], outputs: tuple[TensorMeta | None, ...]
) -> Rules:
    """The rows of one call; all-Replicate is always there, and first.

    `op` is "aten.<name>.<overload>" (or another torch namespace) or an op of the nn dialect; tensors in `args` and
    `kwargs` are given as TensorMeta, lists of tensors as lists of them. Answers are cached.
    """
    frozen: _Items = tuple((name, _freeze(value)) for name, value in sorted(kwargs.items()))
    return _rows(op, tuple(_freeze(value) for value in args), frozen, outputs)


@lru_cache(maxsize=65536)
def _rows(op: str, args: tuple[object, ...], kwargs: _Items, outputs: tuple[TensorMeta | None, ...]) -> Rules:
    call = bind(op, args, dict(kwargs), outputs)
    if call is None:
        return _unknown(Call(op, {"args": args, "kwargs": tuple(dict(kwargs).values())}, outputs))
    own = table.TABLE.get(op)
    if own is not None:
        return Rules(finish(call, own(call)), known=True, source="own")
    found = dtensor.rows(call)
    if found is None:
        return _unknown(call)
    return Rules(finish(call, [*found, *table.also(call)]), known=True, source="dtensor")


def _unknown(call: Call) -> Rules:
    return Rules(finish(call, ()), known=False, source="own")


def _freeze(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    return value
