"""The entry function of the ranks at one coordinate on the axis of the stages: a straight line through a whole step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from ...ir.bindings import Location, Operation, Type, Value, mlir
from ...ir.dialects import context
from ...ir.locations import Origin, to_location
from ...ir.module import Module, build_function, entry, finish_function
from ...ir.operations import Call, build
from ...ir.pipeline import MICROBATCH, entry_name, microbatches, set_microbatch
from ...ir.placement import Shard
from ...ir.types import TensorType, from_mlir, to_mlir
from ...schedules.schedule import Task
from .graph import Node, build_like, copy_node
from .messages import Messages, Parcel
from .step import Step
from .time_axis import is_over_time, without_time

_NOWHERE = Origin()


@dataclass
class EntryBuilder:
    """Builds the entry of one coordinate; see the module's docstring."""

    module: Module
    step: Step
    messages: Messages
    axis: str
    at: int
    dtype: torch.dtype | None = None
    """What floating values of microbatches are cast to where they cross; None: nothing is."""
    values: dict[Value, Value] = field(default_factory=dict)
    """What is there once a step."""
    parts: dict[Parcel, Value] = field(default_factory=dict)
    """What is there for each microbatch."""
    totals: dict[Value, Value] = field(default_factory=dict)
    """Sums over the microbatches so far."""
    received: dict[int, int] = field(default_factory=dict)
    """How many of the messages of each other coordinate were received."""

    def build(self) -> Operation:
        """The function, in the module."""
        taken = self.step.taken(self.at)
        arguments = [(n, v, record) for n, (v, record) in enumerate(self.step.graph.arguments)]
        mine = [(n, v, record) for n, v, record in arguments if self._is_given(v, taken)]
        types = [_whole(v.type, self.module) for _, v, _ in mine]
        records = [{**record, "order": n} for n, _, record in mine]
        function = build_function(self.module, entry_name(self.at), types, records=records)
        del function.attributes["sym_visibility"]
        self.values.update({v: a for (_, v, _), a in zip(mine, entry(function).arguments, strict=True)})
        with context(), mlir.InsertionPoint(entry(function)):
            self._share_parameters()
            self._before()
            for task in self.messages.schedule.order[self.at]:
                self._task(task)
            self._after()
            results, records = self._results()
        finish_function(function, results, records)
        return function

    def _is_given(self, value: Value, taken: set[Value]) -> bool:
        return value in taken and self.step.homes.get(value, self.at) == self.at

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
                    self._send(self.values[value], to)
            elif self.at in others and home is not None:
                self.values[value] = self._receive(value.type, home)

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
                self._add_up(node)
            else:
                copy_node(node, self.values)

    def _add_up(self, node: Node) -> None:
        """An early reduction: over the microbatches, then over what other axes it has."""
        assert node.call is not None
        value, axes, reduce = node.call.args
        total = self.parts[value, 0]
        for microbatch in range(1, self._count):
            total = _combined(total, self.parts[value, microbatch], reduce, node.op.location)
        self._finish_sum(node, total, [axis for axis in axes if axis != MICROBATCH], reduce)

    def _finish_sum(self, node: Node, total: Value, axes: Sequence[str], reduce: str) -> None:
        [result] = node.values
        loc = node.op.location
        if axes:
            total = build(Call("aten.alias.default", (total,)), [_timeless(total.type)], loc)[0]
            total = build(Call("comm.all_reduce", (total, list(axes), reduce)), [result.type], loc)[0]
        else:
            total = build(Call("aten.alias.default", (total,)), [result.type], loc)[0]
        self.values[result] = total

    def _task(self, task: Task) -> None:
        for node in self.messages.calls(task):
            self._call(node, task.microbatch)
            for to, (value, microbatch) in self.messages.sent_after(node, task.microbatch):
                self._send(self._packed(self.parts[value, microbatch]), to)
            self._add_to_totals(node, task.microbatch)

    def _add_to_totals(self, node: Node, microbatch: int) -> None:
        for value in node.values:
            reduce = self._summed.get(value)
            if reduce is not None:
                known, part = self.totals.get(value), self.parts[value, microbatch]
                self.totals[value] = part if known is None else _combined(known, part, reduce, node.op.location)

    @cached_property
    def _summed(self) -> dict[Value, str]:
        """The values that late sums add up, and how."""
        return {n.operands[0]: n.call.args[2] for n in self.step.time.late if n.call is not None}

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
        if value in self.values:
            made = self.values[value]
            if not is_over_time(value):
                return made
            self.parts[value, microbatch] = _slice(made, value.type, microbatch)
        else:
            self._receive_until((value, microbatch))
        return self.parts[value, microbatch]

    def _receive_until(self, parcel: Parcel) -> None:
        """Receive what a coordinate sent, in its order, up to a parcel."""
        source = self.step.makers[parcel[0]]
        queue = self.messages.queues[source, self.at]
        while parcel not in self.parts:
            number = self.received.get(source, 0)
            self.received[source] = number + 1
            value, microbatch = queue[number]
            self.parts[value, microbatch] = self._unpacked(self._receive(self._packed_type(value.type), source), value)

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
            assert node.call is not None
            operand, axes, reduce = node.call.args
            if operand not in self.totals:
                parts = [self._part(operand, m) for m in range(self._count)]
                total = parts[0]
                for part in parts[1:]:
                    total = _combined(total, part, reduce, node.op.location)
                self.totals[operand] = total
            self._finish_sum(node, self.totals[operand], [a for a in axes if a != MICROBATCH], reduce)
            for to in takers:
                if to != self.at:
                    self._send(self.values[value], to)
        elif self.at in takers:
            self.values[value] = self._receive(value.type, maker)

    def _results(self) -> tuple[list[Value], list[dict[str, object]]]:
        """What this entry gives: what is its own, and all outputs."""
        values, records = [], []
        for order, (value, record) in enumerate(self.step.graph.results):
            maker = self.step.maker(value, record)
            is_output = record.get("kind") == "output"
            if not is_output and maker != self.at:
                continue
            if maker == self.at:
                made = self._joined(value)
                for to in range(self.messages.schedule.ranks) if is_output else ():
                    if to != self.at:
                        self._send(made, to)
            else:
                made = self._receive(_whole(value.type, self.module), maker)
            values.append(made)
            records.append({**record, "order": order})
        return values, records

    def _joined(self, value: Value) -> Value:
        """A result of main; of one that microbatches differ in, all of them behind each other."""
        if value in self.values:
            return self.values[value]
        parts = [self._part(value, microbatch) for microbatch in range(self._count)]
        type_ = from_mlir(value.type)
        dim = dict(type_.placement)[MICROBATCH].dim
        return build(Call("aten.cat.default", (parts, dim)), [_whole(value.type, self.module)], _loc())[0]

    def _packed(self, value: Value) -> Value:
        """A value in the dtype in which it crosses."""
        type_ = self._packed_type(value.type)
        if type_ == value.type:
            return value
        return build(Call("aten._to_copy.default", (value,), {"dtype": from_mlir(type_).dtype}), [type_], _loc())[0]

    def _packed_type(self, type_: Type) -> Type:
        tensor = from_mlir(type_)
        if self.dtype is None or not tensor.dtype.is_floating_point or tensor.dtype.itemsize <= self.dtype.itemsize:
            return type_
        return to_mlir(replace(tensor, dtype=self.dtype))

    def _unpacked(self, value: Value, like: Value) -> Value:
        if value.type == like.type:
            return value
        dtype = from_mlir(like.type).dtype
        return build(Call("aten._to_copy.default", (value,), {"dtype": dtype}), [like.type], _loc())[0]

    def _send(self, value: Value, to: int) -> None:
        build(Call("comm.send", (value, self.axis, to)), [], _loc())

    def _receive(self, type_: Type, source: int) -> Value:
        tensor = from_mlir(type_)
        call = Call("comm.receive", (self.axis, source, list(tensor.shape), tensor.dtype))
        [made] = build(call, [type_], _loc())
        return made


def _loc() -> Location:
    return to_location(_NOWHERE)


def _timeless(type_: Type) -> Type:
    return to_mlir(without_time(from_mlir(type_)))


def _combined(a: Value, b: Value, reduce: str, loc: Location) -> Value:
    """Two addends of a sum, or of what else reduces."""
    name = {"sum": "aten.add.Tensor", "max": "aten.maximum.default", "min": "aten.minimum.default"}[reduce]
    [made] = build(Call(name, (a, b)), [a.type], loc)
    return made


def _whole(type_: Type, module: Module) -> Type:
    """The type of a value of which all microbatches are there."""
    tensor = from_mlir(type_)
    placement = dict(tensor.placement)
    cut = placement.pop(MICROBATCH, None)
    shape = list(tensor.shape)
    if isinstance(cut, Shard):
        shape[cut.dim] *= microbatches(module.mesh)
    return to_mlir(TensorType(tensor.dtype, tuple(shape), tuple(sorted(placement.items())), tensor.extents))


def _slice(value: Value, type_: Type, microbatch: int) -> Value:
    """The part of an input that a microbatch takes."""
    tensor = from_mlir(type_)
    cut = dict(tensor.placement)[MICROBATCH]
    assert isinstance(cut, Shard)
    size = tensor.shape[cut.dim]
    call = Call("aten.slice.Tensor", (value, cut.dim, microbatch * size, (microbatch + 1) * size))
    [made] = build(call, [type_], _loc())
    return made
