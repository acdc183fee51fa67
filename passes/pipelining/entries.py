"""The entry function of the ranks at one coordinate on the axis of the stages: a straight line through a whole step."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ir.bindings import Operation, Type, Value, mlir
from ...ir.dialects.context import context
from ...ir.module import Module, build_call, build_function, entry, finish_function
from ...ir.operations import Call, build
from ...ir.pipelined_module import entry_name, microbatches, set_microbatch
from ...ir.types import from_mlir
from ...schedules.schedule import Task
from ..graph import Node, build_like, copy_node
from .messages import Messages, Parcel, Transfers, nowhere
from .microbatch_sums import MicrobatchSums
from .pairs import Pairs, taken
from .spread import meets
from .step import Step
from .time_axis import cut_dim, whole


@dataclass
class EntryBuilder:
    """Builds the entry of one coordinate; see the module's docstring."""

    module: Module
    step: Step
    messages: Messages
    transfers: Transfers
    pairs: Pairs
    values: dict[Value, Value] = field(default_factory=dict)
    """What is there once a step."""
    parts: dict[Parcel, Value] = field(default_factory=dict)
    """What is there for each microbatch."""
    meeting: list[tuple[Node, int]] = field(default_factory=list)
    """What all coordinates are to do together next, each with its microbatch."""
    sums: MicrobatchSums = field(init=False)

    def __post_init__(self) -> None:
        self.sums = MicrobatchSums.of(self.step.time.late, self._count)

    def build(self) -> Operation:
        """The function, in the module."""
        taken = self.step.taken(self.at)
        arguments = [(n, v, record) for n, (v, record) in enumerate(self.step.graph.arguments)]
        mine = [(n, v, record) for n, v, record in arguments if self._is_given(v, taken)]
        types = [whole(v.type, self._count) for _, v, _ in mine]
        records = [{**record, "order": n} for n, _, record in mine]
        function = build_function(self.module, entry_name(self.at), types, records=records)
        self.values.update({v: a for (_, v, _), a in zip(mine, entry(function).arguments, strict=True)})
        with context(), mlir.InsertionPoint(entry(function)):
            self._share_parameters()
            self._before()
            self._tasks()
            self._after()
            results, records = self._results()
        finish_function(function, results, records)
        return function

    def _is_given(self, value: Value, taken: set[Value]) -> bool:
        return value in taken and self.step.homes.get(value, self.at) == self.at

    @property
    def at(self) -> int:
        """The coordinate."""
        return self.transfers.at

    @property
    def _count(self) -> int:
        return microbatches(self.module.mesh)

    def _share_parameters(self) -> None:
        """Send what is owned here to those that use it too, and receive what others own."""
        for value, _ in self.step.graph.arguments:
            home = self.step.homes.get(value)
            others = [] if home is None else [to for to in self.step.takers(value) if to != home]
            if home == self.at:
                for to in others:
                    self.transfers.send(self.values[value], to, nowhere())
            elif self.at in others and home is not None:
                self.values[value] = self.transfers.receive(value.type, home, nowhere())

    def _before(self) -> None:
        """What inputs and parameters decide; what all microbatches share is added up over them."""
        nodes = self.step.before(self.at)
        for node in self.step.graph.nodes:
            if node not in nodes:
                continue
            if node in self.step.time.varying:
                for microbatch in range(self._count):
                    self._call(node, microbatch)
            elif node in self.step.time.early:
                self.values[node.values[0]] = self.sums.join(node, self._parts_of)
            else:
                copy_node(node, self.values)

    def _tasks(self) -> None:
        tasks = iter(self.messages.schedule.order[self.at])
        for task in tasks:
            if task in self.messages.schedule.overlapped:
                self._pair(task, next(tasks))
            elif task.kind.is_shared:
                self._share(task)
            else:
                self._task(task)
                self._meet()
        self._meet()

    def _task(self, task: Task) -> None:
        for node in self.messages.calls(task):
            self._call(node, task.microbatch)
            self._give(node, task.microbatch)

    def _share(self, task: Task) -> None:
        """A task that every coordinate has a part of; collectives of what it gives begin, the rest comes later."""
        self._meet()
        self._task(task)
        waiting = [(node, task.microbatch) for node in self.step.meetings.get(task.kind, ())]
        made = {v for node, _ in waiting for v in node.values}
        for node, microbatch in waiting:
            if meets(node, self.transfers.axis) and not any(v in made for v in node.operands):
                self._join_in(node, microbatch)
            else:
                self.meeting.append((node, microbatch))

    def _meet(self) -> None:
        """Do what all coordinates do together; they come to it in the same order."""
        waiting, self.meeting = self.meeting, []
        for node, microbatch in waiting:
            self._join_in(node, microbatch)

    def _join_in(self, node: Node, microbatch: int) -> None:
        """One operation of a meeting."""
        assert node.call is not None
        operands = [self._part(v, microbatch) for v in node.operands]
        made = build(node.call.replace_values(operands), [v.type for v in node.values], node.op.location)
        self.parts.update({(v, microbatch): new for v, new in zip(node.values, made, strict=True)})
        self.sums.add(node, microbatch, self.parts)

    def _pair(self, forward: Task, backward: Task) -> None:
        """Two tasks in one call, where that can hide communication; else one after the other."""
        first, second = self.messages.calls(forward), self.messages.calls(backward)
        name = self.pairs.function(first[0], second) if first and second else None
        if name is None:
            self._task(forward)
            self._task(backward)
            return
        turns = [(node, task.microbatch) for task, nodes in ((forward, first), (backward, second)) for node in nodes]
        operands = [self._part(v, forward.microbatch) for v in taken(first)]
        operands += [self._part(v, backward.microbatch) for v in taken(second)]
        types = [v.type for node, _ in turns for v in node.values]
        made = build_call(name, operands, types, first[0].op.location)
        set_microbatch(made[0].owner, (forward.microbatch, backward.microbatch))
        results = iter(made)
        for node, microbatch in turns:
            self.parts.update({(v, microbatch): next(results) for v in node.values})
        for node, microbatch in turns:
            self._give(node, microbatch)

    def _give(self, node: Node, microbatch: int) -> None:
        """Send what others need of a call's results, and add up what is summed over time."""
        self.transfers.send_results(node, microbatch, self.parts)
        self.sums.add(node, microbatch, self.parts)

    def _call(self, node: Node, microbatch: int) -> None:
        """One task."""
        operands = [self._part(v, microbatch) for v in node.operands]
        made = build_like(node, operands, [v.type for v in node.values], node.op.location)
        if made:
            set_microbatch(made[0].owner, microbatch)
        self.parts.update({(v, microbatch): new for v, new in zip(node.values, made, strict=True)})

    def _part(self, value: Value, microbatch: int) -> Value:
        """A value as a microbatch needs it: what is once a step, a slice of an input, a result, a message."""
        if (value, microbatch) in self.parts:
            return self.parts[value, microbatch]
        if value in self.step.everywhere:
            self._meet()
            return self.parts[value, microbatch]
        if value in self.values:
            made = self.values[value]
            if cut_dim(value.type) is None:
                return made
            self.parts[value, microbatch] = _slice(made, value.type, microbatch)
        else:
            self.transfers.receive_until((value, microbatch), self.parts)
        return self.parts[value, microbatch]

    def _parts_of(self, value: Value) -> list[Value]:
        """A value as all microbatches have it, in order."""
        return [self._part(value, microbatch) for microbatch in range(self._count)]

    def _after(self) -> None:
        """Sums over time go where they are wanted; what is made of them is made."""
        for node in self.step.time.late:
            self._finish_late(node)
        for node in self.step.graph.nodes:
            if node in self.step.after(self.at):
                copy_node(node, self.values)

    def _finish_late(self, node: Node) -> None:
        maker, takers = self.step.sum_maker(node), self.step.sum_takers(node)
        [value] = node.values
        if maker == self.at:
            self.values[value] = self.sums.join(node, self._parts_of)
            for to in takers:
                if to != self.at:
                    self.transfers.send(self.values[value], to, node.op.location)
        elif maker is None:
            if self.at in takers:
                self.values[value] = self.sums.join(node, self._parts_of)
        elif self.at in takers:
            self.values[value] = self.transfers.receive(value.type, maker, node.op.location)

    def _results(self) -> tuple[list[Value], list[dict[str, object]]]:
        """What this entry gives: what is its own, and all outputs."""
        values, records = [], []
        for order, (value, record) in enumerate(self.step.graph.results):
            maker = self.step.maker(value, record)
            is_output = record.get("kind") == "output"
            if not is_output and maker not in (self.at, None):
                continue
            if maker in (self.at, None):
                made = self._joined(value)
                for to in range(self.messages.schedule.ranks) if is_output and maker is not None else ():
                    if to != self.at:
                        self.transfers.send(made, to, self.transfers.place(value))
            else:
                assert maker is not None
                made = self.transfers.receive(whole(value.type, self._count), maker, self.transfers.place(value))
            values.append(made)
            records.append({**record, "order": order})
        return values, records

    def _joined(self, value: Value) -> Value:
        """A result of main; of one that microbatches differ in, all of them behind each other."""
        if value in self.values:
            return self.values[value]
        call = Call("aten.cat.default", (self._parts_of(value), cut_dim(value.type)))
        return build(call, [whole(value.type, self._count)], nowhere())[0]


def _slice(value: Value, type_: Type, microbatch: int) -> Value:
    """The part of an input that a microbatch takes."""
    dim = cut_dim(type_)
    assert dim is not None
    size = from_mlir(type_).shape[dim]
    call = Call("aten.slice.Tensor", (value, dim, microbatch * size, (microbatch + 1) * size))
    [made] = build(call, [type_], nowhere())
    return made
