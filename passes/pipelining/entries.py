"""Build the entry function of one coordinate on the pipeline axis: straight-line code for a whole step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...ir.bindings import Operation, Type, Value, mlir
from ...ir.dialects.context import context
from ...ir.module import Module, build_call, build_function, entry, finish_function
from ...ir.operations import Call, build
from ...ir.pipelined_module import entry_name, microbatches, set_microbatch
from ...ir.types import from_mlir
from ...schedules.schedule import Task
from ..graph import Node, build_like, copy_node
from .assignment import StepAssignment
from .messages import Messages, MicrobatchValue, Transfers, nowhere
from .microbatch_analysis import all_microbatches, microbatch_dim
from .microbatch_sums import MicrobatchSums
from .pairs import OverlappedPairs, external_operands
from .shared_work import is_collective_over


@dataclass
class EntryBuilder:
    """Builds the entry of one coordinate; see the module's docstring."""

    module: Module
    assignment: StepAssignment
    messages: Messages
    transfers: Transfers
    pairs: OverlappedPairs
    values: dict[Value, Value] = field(default_factory=dict)
    """The values that exist once a step."""
    microbatch_values: dict[MicrobatchValue, Value] = field(default_factory=dict)
    """The values that exist for each microbatch."""
    barrier: list[tuple[Node, int]] = field(default_factory=list)
    """The pending operations of barriers, each with its microbatch."""
    sums: MicrobatchSums = field(init=False)

    def __post_init__(self) -> None:
        analysis = self.assignment.analysis
        self.sums = MicrobatchSums.of([*analysis.late, *analysis.midway], self._count)

    def build(self) -> Operation:
        """Build the function in the module."""
        used = self.assignment.arguments_of(self.coordinate)
        arguments = [(n, v, record) for n, (v, record) in enumerate(self.assignment.graph.arguments)]
        own = [(n, v, record) for n, v, record in arguments if self._is_argument(v, used)]
        types = [all_microbatches(v.type, self._count) for _, v, _ in own]
        records = [{**record, "order": n} for n, _, record in own]
        function = build_function(self.module, entry_name(self.coordinate), types, records=records)
        self.values.update({v: a for (_, v, _), a in zip(own, entry(function).arguments, strict=True)})
        with context(), mlir.InsertionPoint(entry(function)):
            self._exchange_parameters()
            self._before()
            self._tasks()
            self._after()
            results, records = self._results()
        finish_function(function, results, records)
        return function

    def _is_argument(self, value: Value, used: set[Value]) -> bool:
        return value in used and self.assignment.owners.get(value, self.coordinate) == self.coordinate

    @property
    def coordinate(self) -> int:
        """The coordinate."""
        return self.transfers.coordinate

    @property
    def _count(self) -> int:
        return microbatches(self.module.mesh)

    def _exchange_parameters(self) -> None:
        """Send own parameters to the coordinates that use them too, and receive those that others own."""
        for value, _ in self.assignment.graph.arguments:
            owner = self.assignment.owners.get(value)
            receivers = [] if owner is None else [c for c in self.assignment.users_of(value) if c != owner]
            if owner == self.coordinate:
                for destination in receivers:
                    self.transfers.send(self.values[value], destination, nowhere(), self.transfers.names.of(value))
            elif self.coordinate in receivers and owner is not None:
                name = self.transfers.names.of(value)
                self.values[value] = self.transfers.receive(value.type, owner, nowhere(), name)

    def _before(self) -> None:
        """The work before the tasks: light work for each microbatch, early reductions over them, and work done once."""
        nodes = self.assignment.before(self.coordinate)
        for node in self.assignment.graph.nodes:
            if node not in nodes:
                continue
            if node in self.assignment.analysis.varying:
                for microbatch in range(self._count):
                    self._call(node, microbatch)
            elif node in self.assignment.analysis.early:
                self.values[node.values[0]] = self.sums.join(node, self._all_values)
            else:
                copy_node(node, self.values)

    def _tasks(self) -> None:
        tasks, turn = enumerate(self.messages.schedule.order[self.coordinate]), self.messages.turn(self.coordinate)
        is_midway_done = False
        for place, task in tasks:
            if place >= turn and not is_midway_done:
                is_midway_done = True
                self._midway()
            if task in self.messages.schedule.overlapped:
                self._pair(task, next(tasks)[1])
            elif task.kind.is_shared:
                self._shared_task(task)
            else:
                self._task(task)
                self._run_barrier()
        self._run_barrier()
        if not is_midway_done:
            self._midway()

    def _midway(self) -> None:
        """Sums over microbatches that the backwards need, each made by one coordinate, and the work behind them."""
        users = range(self.messages.schedule.ranks)
        nodes_of = {coordinate: self.assignment.midway(coordinate) for coordinate in users}
        for node in self.assignment.analysis.midway:
            if self.assignment.analysis.joins_microbatches(node):
                self._join(node, [c for c in users if node in nodes_of[c]], is_midway=True)
            elif node in nodes_of[self.coordinate]:
                copy_node(node, self.values)

    def _task(self, task: Task) -> None:
        for node in self.messages.calls(task):
            self._call(node, task.microbatch)
            self._send_and_sum(node, task.microbatch)

    def _shared_task(self, task: Task) -> None:
        """A shared task; collectives on its results start right away, the rest of its barrier is pending."""
        self._run_barrier()
        self._task(task)
        barrier_ops = [(node, task.microbatch) for node in self.assignment.barriers.get(task.kind, ())]
        results = {v for node, _ in barrier_ops for v in node.values}
        for node, microbatch in barrier_ops:
            if is_collective_over(node, self.transfers.axis) and not any(v in results for v in node.operands):
                self._run_barrier_op(node, microbatch)
            else:
                self.barrier.append((node, microbatch))

    def _run_barrier(self) -> None:
        """Run the pending barrier; all coordinates run barriers in the same order."""
        barrier_ops, self.barrier = self.barrier, []
        for node, microbatch in barrier_ops:
            self._run_barrier_op(node, microbatch)

    def _run_barrier_op(self, node: Node, microbatch: int) -> None:
        """One operation of a barrier."""
        assert node.call is not None
        operands = [self._value(v, microbatch) for v in node.operands]
        results = build(node.call.replace_values(operands), [v.type for v in node.values], node.op.location)
        self.microbatch_values.update({(v, microbatch): new for v, new in zip(node.values, results, strict=True)})
        self.sums.add(node, microbatch, self.microbatch_values)

    def _pair(self, forward: Task, backward: Task) -> None:
        """Two overlapped tasks in one call, if that can hide communication; else one after the other."""
        first, second = self.messages.calls(forward), self.messages.calls(backward)
        name = self.pairs.function(first[0], second) if first and second else None
        if name is None:
            self._task(forward)
            self._task(backward)
            return
        calls = [(node, task.microbatch) for task, nodes in ((forward, first), (backward, second)) for node in nodes]
        operands = [self._value(v, forward.microbatch) for v in external_operands(first)]
        operands += [self._value(v, backward.microbatch) for v in external_operands(second)]
        types = [v.type for node, _ in calls for v in node.values]
        results = build_call(name, operands, types, first[0].op.location)
        set_microbatch(results[0].owner, (forward.microbatch, backward.microbatch))
        remaining = iter(results)
        for node, microbatch in calls:
            self.microbatch_values.update({(v, microbatch): next(remaining) for v in node.values})
        for node, microbatch in calls:
            self._send_and_sum(node, microbatch)

    def _send_and_sum(self, node: Node, microbatch: int) -> None:
        """Send the results of a call that others need, and accumulate sums over microbatches."""
        self.transfers.send_results(node, microbatch, self.microbatch_values)
        self.sums.add(node, microbatch, self.microbatch_values)

    def _call(self, node: Node, microbatch: int) -> None:
        """One call for one microbatch."""
        operands = [self._value(v, microbatch) for v in node.operands]
        results = build_like(node, operands, [v.type for v in node.values], node.op.location)
        if results:
            set_microbatch(results[0].owner, microbatch)
        self.microbatch_values.update({(v, microbatch): new for v, new in zip(node.values, results, strict=True)})

    def _value(self, value: Value, microbatch: int) -> Value:
        """A value for one microbatch: a value of the step, a slice of an input, a result, or a received message."""
        if (value, microbatch) in self.microbatch_values:
            return self.microbatch_values[value, microbatch]
        if value in self.assignment.made_everywhere:
            self._run_barrier()
            return self.microbatch_values[value, microbatch]
        if value in self.values:
            value_of_step = self.values[value]
            if microbatch_dim(value.type) is None:
                return value_of_step
            self.microbatch_values[value, microbatch] = _slice(value_of_step, value.type, microbatch)
        else:
            self.transfers.receive_until((value, microbatch), self.microbatch_values)
        return self.microbatch_values[value, microbatch]

    def _all_values(self, value: Value) -> list[Value]:
        """A value for each microbatch, in order."""
        return [self._value(value, microbatch) for microbatch in range(self._count)]

    def _after(self) -> None:
        """The work after the tasks: late reductions over microbatches, and the nodes behind them."""
        for node in self.assignment.analysis.late:
            self._join(node, self.assignment.sum_users(node))
        for node in self.assignment.graph.nodes:
            if node in self.assignment.after(self.coordinate):
                copy_node(node, self.values)

    def _join(self, node: Node, users: Sequence[int], *, is_midway: bool = False) -> None:
        """The result of a collective over microbatches, on the coordinate that makes it and on its users."""
        maker = self.assignment.sum_maker(node)
        [value] = node.values
        name = self.transfers.names.of(value)
        if maker == self.coordinate:
            self.values[value] = self.sums.join(node, self._all_values)
            for destination in users:
                if destination != self.coordinate:
                    self.transfers.send(self.values[value], destination, node.op.location, name)
        elif maker is None:
            if self.coordinate in users:
                self.values[value] = self.sums.join(node, self._all_values)
        elif self.coordinate in users:
            if is_midway:
                self.transfers.receive_first(maker, self.microbatch_values)
            self.values[value] = self.transfers.receive(value.type, maker, node.op.location, name)

    def _results(self) -> tuple[list[Value], list[dict[str, object]]]:
        """The results of this entry: its own gradients and buffers, and all outputs."""
        values, records = [], []
        for order, (value, record) in enumerate(self.assignment.graph.results):
            maker = self.assignment.maker(value, record)
            is_output = record.get("kind") == "output"
            name = self.transfers.names.of(value)
            if not is_output and maker not in (self.coordinate, None):
                continue
            if maker in (self.coordinate, None):
                result = self._joined(value)
                for destination in range(self.messages.schedule.ranks) if is_output and maker is not None else ():
                    if destination != self.coordinate:
                        self.transfers.send(result, destination, self.transfers.location(value), name)
            else:
                assert maker is not None
                result = self.transfers.receive(
                    all_microbatches(value.type, self._count), maker, self.transfers.location(value), name
                )
            values.append(result)
            records.append({**record, "order": order})
        return values, records

    def _joined(self, value: Value) -> Value:
        """A result of main; one that varies over microbatches is concatenated, others are those of each microbatch."""
        if value in self.values:
            return self.values[value]
        dim = microbatch_dim(value.type)
        if dim is None:
            return self._all_values(value)[-1]
        call = Call("aten.cat.default", (self._all_values(value), dim))
        return build(call, [all_microbatches(value.type, self._count)], nowhere())[0]


def _slice(value: Value, type_: Type, microbatch: int) -> Value:
    """The slice of an input for one microbatch."""
    dim = microbatch_dim(type_)
    assert dim is not None
    size = from_mlir(type_).shape[dim]
    call = Call("aten.slice.Tensor", (value, dim, microbatch * size, (microbatch + 1) * size))
    [part] = build(call, [type_], nowhere())
    return part
