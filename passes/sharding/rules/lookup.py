"""Look up the sharding strategies of a call on one mesh axis.

Stretto's own rules (`table.py`) come first, then DTensor's registered strategies. An op that neither has runs
replicated, with `OpStrategies.known` False.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from . import dtensor, table
from .builders import finish
from .call import Call, bind
from .strategy import OpStrategies, TensorMeta

_Items = tuple[tuple[str, object], ...]


def strategies_for(
    op: str, args: tuple[object, ...], kwargs: Mapping[str, object], outputs: tuple[TensorMeta | None, ...]
) -> OpStrategies:
    """The strategies of one call; all-Replicate is always among them, and first.

    `op` is "aten.<name>.<overload>" (or another torch namespace) or an op of the nn dialect; tensors in `args` and
    `kwargs` are given as TensorMeta, lists of tensors as lists of them. Answers are cached.
    """
    frozen: _Items = tuple((name, _freeze(value)) for name, value in sorted(kwargs.items()))
    return _cached_strategies(op, tuple(_freeze(value) for value in args), frozen, outputs)


@lru_cache(maxsize=65536)
def _cached_strategies(
    op: str, args: tuple[object, ...], kwargs: _Items, outputs: tuple[TensorMeta | None, ...]
) -> OpStrategies:
    call = bind(op, args, dict(kwargs), outputs)
    if call is None:
        return _unknown(Call(op, {"args": args, "kwargs": tuple(dict(kwargs).values())}, outputs))
    rule = table.TABLE.get(op)
    if rule is not None:
        return OpStrategies(finish(call, rule(call)), known=True, source="own")
    registered = dtensor.dtensor_strategies(call)
    if registered is None:
        return _unknown(call)
    return OpStrategies(finish(call, [*registered, *table.extra_strategies(call)]), known=True, source="dtensor")


def _unknown(call: Call) -> OpStrategies:
    return OpStrategies(finish(call, ()), known=False, source="own")


def _freeze(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    return value
