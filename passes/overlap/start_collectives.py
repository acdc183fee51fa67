"""Start every collective when its operand is ready, and wait for it before the first use of its result.

Before                                     After
  %1 = comm.all_reduce %0 over ["tp"]        %f = comm.all_reduce_start %0 over ["tp"] : !async.value<..>
  %2 = aten.mm %a, %b                        %2 = aten.mm %a, %b
  %3 = aten.add %1, %2                       %1 = comm.wait %f
                                             %3 = aten.add %1, %2

Operations between the two run beside the collective. No custom op is among them: a collective ends before one begins.
A receive has no operands and takes memory from its start on, so it starts a few tasks (calls) before the task that uses
it.

From its start to its wait a collective keeps its operands and results. With `max-in-flight` the oldest is waited for
before one starts with which those under way would have more bytes. With `max-calls` a collective is waited for before
the call that follows so many others. No wait moves before a send.

Needs: level `comm`.   Keeps: values, and the order of collectives, which all ranks share; of receives, that of those
from one rank.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...dsl.communication.overlap import ALL_KINDS
from ...ir.attributes import from_attribute
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import BLOCKING, RECEIVE_START, STARTS, WAIT, start_of
from ...ir.dialects.context import context
from ...ir.lanes import lane_of
from ...ir.locations import from_location
from ...ir.module import Level, Module, callee, operations
from ...ir.operations import Call, build, flatten, is_packing, made_by, read, results_of
from ...ir.types import future_of
from ..base import Pass, RemarkKind, Report
from ..collective_text import collective_text
from ..counted_remarks import CountedRemarks
from ..option_values import Range
from ..plan_effects import OVERLAP_KEY
from ..sharding.rules.views import TABLE as VIEWS
from .custom_ops import IsBarrier, communication_barriers
from .in_flight import bound_calls, bound_in_flight
from .kinds import kind_of, kinds_in
from .positions import copy_position


@dataclass(frozen=True)
class StartCollectives(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "start-collectives"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    tasks_ahead: Annotated[int, Range(0, unit="tasks")] = 1
    """A receive starts this many tasks before its first use; 0: it is not moved."""
    max_in_flight: Annotated[int | None, Range(0, unit="bytes")] = None
    """The most bytes of operands and results of the collectives under way in a function; none: no bound."""
    max_calls: Annotated[int | None, Range(0, unit="calls")] = None
    """During how many calls of layers, or tasks, a collective may be under way; none: no bound. In a compile, the
    `prefetch` of `zero`, else 1: the gradients of that many layers exist twice."""
    kinds: str = ALL_KINDS
    """Which kinds of communication run beside other work, separated by commas; the others are waited for where they
    start. In a compile, as `overlap` says."""

    def run(self, module: Module) -> Report:
        count, remarks, kinds = 0, CountedRemarks(self.name), kinds_in(self.kinds)
        is_barrier = communication_barriers(module)
        for function in module.functions().values():
            ops = list(operations(function))
            barriers = [index for index, op in enumerate(ops) if is_barrier(op)]
            for index, op in enumerate(ops):
                call = read(op)
                if call is not None and call.name in BLOCKING:
                    what, origin = collective_text(op), from_location(op.location)
                    barrier = _split(op, call, ops, index, barriers, stays=kind_of(op) not in kinds)
                    if barrier is not None:
                        custom = read(barrier)
                        name = custom.name if custom is not None else callee(barrier)
                        remarks.missed(f'{what} ends before "{name}": nothing communicates beside a custom op', origin)
                    count += 1
            if self.tasks_ahead and "send" in kinds:
                _advance_receives(function, self.tasks_ahead, is_barrier)
            bounded = bound_calls(function, self.max_calls) if self.max_calls is not None else []
            bounded += bound_in_flight(function, self.max_in_flight) if self.max_in_flight is not None else []
            for wait in bounded:
                start = _start_of(wait.operands[0])
                if start is not None:
                    message = f"{collective_text(start)} is waited for earlier than its result is used, to bound memory"
                    remarks.applied(message, from_location(wait.location))
            _remark(function, remarks, kinds)
        return Report(count, remarks.remarks(), {OVERLAP_KEY: "" if count else "nothing is sent"})


def _split(
    op: Operation, call: Call, ops: list[Operation], index: int, barriers: Sequence[int], *, stays: bool
) -> Operation | None:
    """Replace one collective by a start and a wait, right behind it if it `stays`; its users are in the same block.

    `ops` are the function's operations, of which it is number `index`, and `barriers` the numbers of those that no
    collective may be under way at. Of a bucket, each result has a wait of its own. Returns the barrier before which it
    is waited for, though that takes no result of it.
    """
    following = bisect_right(barriers, index)
    barrier = ops[barriers[following]] if following < len(barriers) else None
    results = results_of(op)
    start = Call(start_of(call.name), call.args, call.kwargs)
    ended_by: Operation | None = None
    types = [[future_of(part.type) for part in r] if isinstance(r, list) else future_of(r.type) for r in results]
    with context():
        with mlir.InsertionPoint(op):
            futures = build(start, types, op.location, lane_of(op))
            for future in flatten(futures):
                copy_position(op, made_by(future))
        for result, future in zip(flatten(results), flatten(futures), strict=True):
            users = [use.owner for use in result.uses] or [_second_task_after(ops, index)]
            place = op if stays else _first_of([*users, *([barrier] if barrier is not None else [])])
            ended_by = barrier if place is barrier and barrier not in users else ended_by
            with mlir.InsertionPoint(place):
                [value] = build(Call(WAIT, (future,)), [result.type], op.location)
            copy_position(op, value.owner)
            result.replace_all_uses_with(value)
    for unpacking in [use.owner for use in op.results[0].uses]:
        unpacking.operation.erase()
    op.operation.erase()
    return ended_by


def _second_task_after(ops: list[Operation], index: int) -> Operation:
    """Where to wait for an unused result, such as a sum that only other ranks use: before the second task from here."""
    tasks = (ops[position] for position in range(index + 1, len(ops) - 1) if callee(ops[position]) is not None)
    next(tasks, None)
    return next(tasks, ops[-1])


def _advance_receives(function: Operation, tasks_ahead: int, is_barrier: IsBarrier) -> None:
    """Move the starts of receives before earlier tasks; receives from one rank keep their order."""
    ops = list(operations(function))
    positions = {op: index for index, op in enumerate(ops)}
    tasks: list[int] = []
    receives = {op.results[0]: op for op in ops if op.operation.name == RECEIVE_START}
    earliest_start: dict[Operation, int] = {}
    for index, op in enumerate(ops):
        for start in (receives[operand] for operand in op.operands if operand in receives):
            before = tasks[-tasks_ahead:]
            earliest_start[start] = before[0] if before else positions[start]
        if callee(op) is not None:
            tasks.append(_with_waits(ops, index))
    last_of_source: dict[tuple[str, int], int] = {}
    after_barrier = 0
    for index, op in enumerate(ops):
        if is_barrier(op):
            after_barrier = index + 1
        if op.operation.name == RECEIVE_START:
            source = (from_attribute(op.attributes["axis"]), from_attribute(op.attributes["peer"]))
            position = max(earliest_start[op], last_of_source.get(source, 0), after_barrier)
            last_of_source[source] = position
            if position < index:
                op.operation.move_before(ops[position].operation)


def _with_waits(ops: list[Operation], task: int) -> int:
    """The index of the first of the waits right before a task."""
    while task and ops[task - 1].operation.name == WAIT:
        task -= 1
    return task


def _first_of(users: list[Operation]) -> Operation:
    """The first of the operations in their block."""
    first = users[0]
    for user in users[1:]:
        if user.operation.is_before_in_block(first.operation):
            first = user
    return first


def _remark(function: Operation, remarks: CountedRemarks, kinds: Container[str]) -> None:
    """Remark which collectives run beside other work, and which stay exposed."""
    hidden: dict[Operation, bool] = {}
    """By start whose first wait is to come: whether other work stands behind it."""
    for op in operations(function):
        call = read(op)
        if call is not None and call.name == WAIT:
            start = _start_of(call.args[0])
            if start is None or start not in hidden:
                continue
            if hidden.pop(start):
                remarks.applied(f"{collective_text(start)} runs beside other work", from_location(start.location))
            elif kind_of(start) not in kinds:
                message = f"{collective_text(start)} is waited for where it starts, as the plan says"
                remarks.add(RemarkKind.NOTE, message, from_location(start.location))
            else:
                message = f"{collective_text(start)} stays exposed: no work stands between it and its first use"
                remarks.missed(message, from_location(start.location))
        elif call is not None and call.name in STARTS:
            hidden[op] = False
        elif is_packing(op):
            continue
        elif call is None or not (call.name.startswith("comm.") or call.name in VIEWS):
            hidden = dict.fromkeys(hidden, True)


def _start_of(future: Value) -> Operation | None:
    """The operation that gives a future, itself or in a list; None for an argument of the function."""
    maker = future.owner
    if isinstance(maker, mlir.Block):
        return None
    return maker.operands[0].owner if is_packing(maker) else maker
