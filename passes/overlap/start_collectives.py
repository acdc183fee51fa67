"""Start every collective where its operand is ready, and wait for it where its result is first used.

Before                                     After
  %1 = comm.all_reduce %0 over ["tp"]        %f = comm.all_reduce_start %0 over ["tp"] : !async.value<..>
  %2 = aten.mm %a, %b                        %2 = aten.mm %a, %b
  %3 = aten.add %1, %2                       %1 = comm.wait %f
                                             %3 = aten.add %1, %2

What stands between the two runs while the collective does. No custom op stands there: a collective ends before one
begins. A receive takes memory from its start on and needs nothing,
so that it may start at any time: it does before a task (a call) that stands some tasks before the one that takes it.

Needs: level `comm`.   Keeps: values, and the order of collectives, which all ranks share; of receives, that of those
from one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...ir.attributes import from_attribute
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import BLOCKING, RECEIVE_START, STARTS, WAIT, start_of
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, callee, operations
from ...ir.operations import Call, build, read
from ...ir.types import future_of
from ..base import Pass, Report
from ..collective_text import collective_text
from ..counted_remarks import Tally
from ..option_values import Range
from ..sharding.rules.views import TABLE as VIEWS
from .custom_ops import IsBarrier, communication_barriers


@dataclass(frozen=True)
class StartCollectives(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "start-collectives"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    tasks_ahead: Annotated[int, Range(0, unit="tasks")] = 1
    """A receive starts before the last of so many tasks that stand before its first use; 0: where it stands."""

    def run(self, module: Module) -> Report:
        count, tally = 0, Tally(self.name)
        is_barrier = communication_barriers(module)
        for function in module.functions().values():
            ops = list(operations(function))
            for at, op in enumerate(ops):
                call = read(op)
                if call is not None and call.name in BLOCKING:
                    _split(op, call, ops, at, is_barrier)
                    count += 1
            if self.tasks_ahead:
                _advance_receives(function, self.tasks_ahead, is_barrier)
            _say(function, tally)
        return Report(count, tally.remarks())


def _split(op: Operation, call: Call, ops: list[Operation], at: int, is_barrier: IsBarrier) -> None:
    """Replace one collective; its users are in the same block, the terminator among them at the last.

    `ops` are its function's, of which it is number `at`.
    """
    [result] = op.results
    barrier = next((later for later in ops[at + 1 :] if is_barrier(later)), None)
    users = [use.owner for use in result.uses] or [_later(ops, at)]
    first = _first([*users, *([barrier] if barrier is not None else [])])
    with context():
        with mlir.InsertionPoint(op):
            [future] = build(Call(start_of(call.name), call.args, call.kwargs), [future_of(result.type)], op.location)
        with mlir.InsertionPoint(first):
            [value] = build(Call(WAIT, (future,)), [result.type], op.location)
    result.replace_all_uses_with(value)
    op.operation.erase()


def _later(ops: list[Operation], at: int) -> Operation:
    """Where to wait for what nothing uses, such as a sum that other ranks want: before the second task from there."""
    tasks = (ops[place] for place in range(at + 1, len(ops) - 1) if callee(ops[place]) is not None)
    next(tasks, None)
    return next(tasks, ops[-1])


def _advance_receives(function: Operation, tasks_ahead: int, is_barrier: IsBarrier) -> None:
    """Move the starts of receives before tasks that do not need them; those from one rank stay in their order."""
    ops = list(operations(function))
    places = {op: at for at, op in enumerate(ops)}
    tasks: list[int] = []
    wanted: dict[Operation, int] = {}
    for at, op in enumerate(ops):
        if callee(op) is not None:
            tasks.append(_with_waits(ops, at))
        elif op.operation.name == WAIT and op.operands[0].owner.operation.name == RECEIVE_START:
            start = op.operands[0].owner
            before = tasks[-tasks_ahead:]
            wanted[start] = before[0] if before else places[start]
    earliest: dict[tuple[str, int], int] = {}
    after_barrier = 0
    for at, op in enumerate(ops):
        if is_barrier(op):
            after_barrier = at + 1
        if op.operation.name == RECEIVE_START:
            source = (from_attribute(op.attributes["axis"]), from_attribute(op.attributes["peer"]))
            place = max(wanted[op], earliest.get(source, 0), after_barrier)
            earliest[source] = place
            if place < at:
                op.operation.move_before(ops[place].operation)


def _with_waits(ops: list[Operation], task: int) -> int:
    """Where the waits begin that stand right before a task."""
    while task and ops[task - 1].operation.name == WAIT:
        task -= 1
    return task


def _first(users: list[Operation]) -> Operation:
    """The one that stands before all others in their block."""
    found = users[0]
    for user in users[1:]:
        if user.operation.is_before_in_block(found.operation):
            found = user
    return found


def _say(function: Operation, tally: Tally) -> None:
    """Count the collectives that work hides, and those that it does not."""
    hidden: dict[Value, bool] = {}
    for op in operations(function):
        call = read(op)
        if call is not None and call.name == WAIT:
            start = call.args[0].owner
            if hidden.get(call.args[0]):
                tally.applied(f"{collective_text(start)} runs beside other work", from_location(start.location))
            else:
                message = f"{collective_text(start)} stays exposed: no work stands between it and its first use"
                tally.missed(message, from_location(start.location))
        elif call is not None and call.name in STARTS:
            hidden[op.results[0]] = False
        elif call is None or not (call.name.startswith("comm.") or call.name in VIEWS):
            hidden = dict.fromkeys(hidden, True)
