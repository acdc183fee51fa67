"""Bound the memory of collectives under way: by bytes, or by the calls that run meanwhile.

From its start to its wait a collective keeps its operands and its results. Results that only leave a function are
waited for at its end, so that without a bound all gradients exist twice there.
"""

from __future__ import annotations

from bisect import bisect_right
from math import prod

from ...ir.bindings import Operation, Value
from ...ir.collectives import RECEIVE_START, SEND, STARTS, WAIT
from ...ir.module import callee, operations
from ...ir.operations import flatten, read, results_of
from ...ir.types import from_mlir


def bound_in_flight(function: Operation, max_bytes: int) -> list[Operation]:
    """Move waits up so that operands and results of collectives under way have at most `max_bytes`; returns those.

    One alone may have more. A wait stays behind a send: another rank may need the message to reach the collective. A
    future that leaves the function, or comes into it, is not counted.
    """
    ops = list(operations(function))
    positions = {op: index for index, op in enumerate(ops)}
    sends = [index for index, op in enumerate(ops) if op.operation.name == SEND]
    under_way: dict[Operation, list[Operation]] = {}
    sizes: dict[Operation, int] = {}
    moved: list[Operation] = []
    for index, op in enumerate(ops):
        if op.operation.name == WAIT:
            for start, waits in list(under_way.items()):
                if op in waits:
                    waits.remove(op)
                    if not waits:
                        del under_way[start]
        waits = _waits(op)
        if not waits:
            continue
        sizes[op] = _bytes(op)
        for start in list(under_way):
            if sizes[op] + sum(sizes[each] for each in under_way) <= max_bytes:
                break
            last = max(positions[wait] for wait in under_way[start])
            if any(index <= send < last for send in sends):
                continue
            for wait in under_way.pop(start):
                wait.operation.move_before(op.operation)
                moved.append(wait)
        under_way[op] = waits
    return moved


def bound_calls(function: Operation, most: int) -> list[Operation]:
    """Move waits up so that no collective is under way during more than so many calls; returns those.

    A wait stays behind a send, as above.
    """
    ops = list(operations(function))
    positions = {op: index for index, op in enumerate(ops)}
    stops = [index for index, op in enumerate(ops) if callee(op) is not None]
    sends = [index for index, op in enumerate(ops) if op.operation.name == SEND]
    moved: list[Operation] = []
    for index, op in enumerate(ops):
        later = bisect_right(stops, index) + most
        if later >= len(stops):
            break
        stop = stops[later]
        for wait in _waits(op):
            if positions[wait] > stop and not any(stop <= send < positions[wait] for send in sends):
                wait.operation.move_before(ops[stop].operation)
                moved.append(wait)
    return moved


def _waits(op: Operation) -> list[Operation]:
    """The waits for a collective that starts here; none for other operations, or if a future leaves the function."""
    name = op.operation.name
    call = read(op) if name.startswith("comm.") else None
    if call is None or call.name not in STARTS or call.name == RECEIVE_START:
        return []
    users = [use.owner for future in flatten(results_of(op)) for use in future.uses]
    return users if all(user.operation.name == WAIT for user in users) else []


def _bytes(op: Operation) -> int:
    call = read(op)
    values: list[Value] = [*(call.values() if call is not None else ()), *flatten(results_of(op))]
    return sum(prod(type_.shape) * type_.dtype.itemsize for type_ in (from_mlir(value.type) for value in values))
