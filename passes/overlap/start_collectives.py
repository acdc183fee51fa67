"""Start every collective where its operand is ready, and wait for it where its result is first used.

Before                                     After
  %1 = comm.all_reduce %0 over ["tp"]        %f = comm.all_reduce_start %0 over ["tp"] : !async.value<..>
  %2 = aten.mm %a, %b                        %2 = aten.mm %a, %b
  %3 = aten.add %1, %2                       %1 = comm.wait %f
                                             %3 = aten.add %1, %2

What stands between the two runs while the collective does. A receive takes memory from its start on and needs nothing,
so that it may start at any time: it does before a task (a call) that stands some tasks before the one that takes it.

Needs: level `comm`.   Keeps: values, and the order of collectives, which all ranks share; of receives, that of those
from one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...ir.attributes import from_attribute
from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.comm import COLLECTIVES
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, callee, operations
from ...ir.operations import Call, build, read
from ...ir.pipelined_module import MICROBATCH
from ...ir.types import future_of
from ..base import Pass, Report
from ..counted_remarks import Tally
from ..option_values import Range
from ..sharding.rules.views import TABLE as VIEWS


@dataclass(frozen=True)
class StartCollectives(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "start-collectives"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    tasks_ahead: Annotated[int, Range(0, unit="tasks")] = 1
    """A receive starts before the last of so many tasks that stand before its first use; 0: where it stands."""

    def run(self, module: Module) -> Report:
        count, tally = 0, Tally(self.name)
        for function in module.functions().values():
            ops = list(operations(function))
            for at, op in enumerate(ops):
                call = read(op)
                if call is not None and call.name in (*COLLECTIVES, "comm.receive"):
                    _split(op, call, ops, at)
                    count += 1
            if self.tasks_ahead:
                _advance_receives(function, self.tasks_ahead)
            _say(function, tally)
        return Report(count, tally.remarks())


def described(op: Operation) -> str:
    """A collective or a receive as remarks name it: "all_reduce over tp", "receive from pp=1"."""
    kind = op.operation.name.removeprefix("comm.").removesuffix("_start")
    if "peer" in op.attributes:
        return f"{kind} from {from_attribute(op.attributes['axis'])}={from_attribute(op.attributes['peer'])}"
    axes = [axis if axis != MICROBATCH else "microbatches" for axis in from_attribute(op.attributes["axes"])]
    return f"{kind} over {', '.join(axes)}"


def _split(op: Operation, call: Call, ops: list[Operation], at: int) -> None:
    """Replace one collective; its users are in the same block, the terminator among them at the last.

    `ops` are its function's, of which it is number `at`.
    """
    [result] = op.results
    first = _first([use.owner for use in result.uses]) or _later(ops, at)
    with context():
        with mlir.InsertionPoint(op):
            [future] = build(Call(f"{call.name}_start", call.args, call.kwargs), [future_of(result.type)], op.location)
        with mlir.InsertionPoint(first):
            [value] = build(Call("comm.wait", (future,)), [result.type], op.location)
    result.replace_all_uses_with(value)
    op.operation.erase()


def _later(ops: list[Operation], at: int) -> Operation:
    """Where to wait for what nothing uses, such as a sum that other ranks want: before the second task from there."""
    tasks = (ops[place] for place in range(at + 1, len(ops) - 1) if callee(ops[place]) is not None)
    next(tasks, None)
    return next(tasks, ops[-1])


def _advance_receives(function: Operation, tasks_ahead: int) -> None:
    """Move the starts of receives before tasks that do not need them; those from one rank stay in their order."""
    ops = list(operations(function))
    places = {op: at for at, op in enumerate(ops)}
    tasks: list[int] = []
    wanted: dict[Operation, int] = {}
    for at, op in enumerate(ops):
        if callee(op) is not None:
            tasks.append(_with_waits(ops, at))
        elif op.operation.name == "comm.wait" and op.operands[0].owner.operation.name == "comm.receive_start":
            start = op.operands[0].owner
            before = tasks[-tasks_ahead:]
            wanted[start] = before[0] if before else places[start]
    earliest: dict[tuple[str, int], int] = {}
    for at, op in enumerate(ops):
        if op.operation.name == "comm.receive_start":
            source = (from_attribute(op.attributes["axis"]), from_attribute(op.attributes["peer"]))
            place = max(wanted[op], earliest.get(source, 0))
            earliest[source] = place
            if place < at:
                op.operation.move_before(ops[place].operation)


def _with_waits(ops: list[Operation], task: int) -> int:
    """Where the waits begin that stand right before a task."""
    while task and ops[task - 1].operation.name == "comm.wait":
        task -= 1
    return task


def _first(users: list[Operation]) -> Operation | None:
    """The one that stands before all others in their block."""
    found: Operation | None = None
    for user in users:
        if found is None or user.operation.is_before_in_block(found.operation):
            found = user
    return found


def _say(function: Operation, tally: Tally) -> None:
    """Count the collectives that work hides, and those that it does not."""
    hidden: dict[Value, bool] = {}
    for op in operations(function):
        call = read(op)
        if call is not None and call.name == "comm.wait":
            start = call.args[0].owner
            if hidden.get(call.args[0]):
                tally.applied(f"{described(start)} runs beside other work", from_location(start.location))
            else:
                message = f"{described(start)} stays exposed: no work stands between it and its first use"
                tally.missed(message, from_location(start.location))
        elif call is not None and call.name.endswith("_start"):
            hidden[op.results[0]] = False
        elif call is None or not (call.name.startswith("comm.") or call.name in VIEWS):
            hidden = dict.fromkeys(hidden, True)
