"""The messages of a step: which coordinate sends which value of which microbatch where, in which order.

`Messages` has them for all coordinates on the pipeline axis; `Transfers` builds the sends and receives of one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from ...diagnostics import Span, StrettoError
from ...ir.bindings import Location, Type, Value
from ...ir.collectives import RECEIVE, SEND
from ...ir.locations import Origin, from_location, to_location
from ...ir.module import Module
from ...ir.operations import Call, build
from ...ir.types import from_mlir, to_mlir
from ...schedules.schedule import Kind, Schedule, Task
from ..graph import Graph, Node, made_at
from .attributes import SHARED, barrier_of

_CAST = "aten._to_copy.default"
MicrobatchValue = tuple[Value, int]
"""A value of one microbatch."""


@dataclass
class Messages:
    """The messages between coordinates on the pipeline axis; those from one coordinate to another arrive in order."""

    schedule: Schedule
    graph: Graph
    segments: Mapping[tuple[Kind, int], Node]
    queues: dict[tuple[int, int], list[MicrobatchValue]] = field(default_factory=lambda: defaultdict(list))
    """By (source, destination): the messages sent during tasks, in order."""
    _sends_after: dict[tuple[Node, int], list[tuple[int, MicrobatchValue]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        receivers = self._receivers()
        for source, tasks in enumerate(self.schedule.order):
            for task in tasks:
                for node in () if task.kind.is_shared else self.calls(task):
                    for value in node.values:
                        for destination in sorted(receivers.get(value, set()) - {source}):
                            microbatch_value = (value, task.microbatch)
                            self.queues[source, destination].append(microbatch_value)
                            self._sends_after[node, task.microbatch].append((destination, microbatch_value))

    def calls(self, task: Task) -> list[Node]:
        """The calls of a task, in order: for a full backward B and W, if it is split into them."""
        if task.kind.is_shared:
            return [self.segments[task.kind, SHARED]]
        kinds = (Kind.BW, Kind.B, Kind.W) if task.kind is Kind.BW else (task.kind,)
        return [self.segments[kind, task.stage] for kind in kinds if (kind, task.stage) in self.segments]

    def turn(self, coordinate: int) -> int:
        """The position in a coordinate's order behind its last forward: where sums over all forwards are known."""
        order = self.schedule.order[coordinate]
        return max((place + 1 for place, task in enumerate(order) if task.kind in (Kind.F, Kind.E)), default=0)

    def sent_before_turn(self, source: int, destination: int) -> int:
        """How many messages a coordinate sends to another before its turn."""
        tasks = self.schedule.order[source][: self.turn(source)]
        calls = [(node, task.microbatch) for task in tasks if not task.kind.is_shared for node in self.calls(task)]
        return sum(receiver == destination for call in calls for receiver, _ in self.sent_after(*call))

    def sent_after(self, call: Node, microbatch: int) -> Iterable[tuple[int, MicrobatchValue]]:
        """(destination, value) of each message that is sent after a call for a microbatch."""
        return self._sends_after.get((call, microbatch), ())

    def _receivers(self) -> dict[Value, set[int]]:
        """The coordinates whose segments use each value."""
        receivers: dict[Value, set[int]] = defaultdict(set)
        all_coordinates = range(self.schedule.ranks)
        for (_, stage), node in self.segments.items():
            for value in node.operands:
                receivers[value].update(all_coordinates if stage == SHARED else [self.schedule.placement[stage]])
        for node in self.graph.nodes:
            if barrier_of(node.op) is not None:
                for value in node.operands:
                    receivers[value].update(all_coordinates)
        return receivers


@dataclass
class Transfers:
    """Builds sends and receives of one coordinate at the insertion point, in the order of `Messages`."""

    module: Module
    messages: Messages
    makers: Mapping[Value, int]
    """The coordinate that computes and sends each value of a microbatch."""
    axis: str
    coordinate: int
    dtype: torch.dtype | None = None
    """The dtype in which floating values of microbatches are sent; None: their own."""
    received: dict[int, int] = field(default_factory=dict)
    """How many messages were received from each coordinate."""
    _locations: dict[Value, Location] = field(default_factory=dict)

    def send(self, tensor: Value, destination: int, loc: Location, carries: str) -> None:
        """Send a tensor without a cast; `carries` names the value of main that it is, as `names` does."""
        build(Call(SEND, (tensor, self.axis, destination, carries)), [], loc)

    def receive(self, type_: Type, source: int, loc: Location, carries: str) -> Value:
        """Receive the next tensor of a coordinate."""
        tensor = from_mlir(type_)
        call = Call(RECEIVE, (self.axis, source, list(tensor.shape), tensor.dtype, carries))
        [received] = build(call, [type_], loc)
        return received

    def send_results(self, node: Node, microbatch: int, microbatch_values: Mapping[MicrobatchValue, Value]) -> None:
        """Send the results of a call that other coordinates need."""
        for destination, microbatch_value in self.messages.sent_after(node, microbatch):
            packed, loc = self._packed(microbatch_values[microbatch_value]), self.location(microbatch_value[0])
            self.send(packed, destination, loc, self.names.of(*microbatch_value))

    def receive_until(
        self, microbatch_value: MicrobatchValue, microbatch_values: MutableMapping[MicrobatchValue, Value]
    ) -> None:
        """Receive the messages of the coordinate that computes a value, in order, up to that value.

        Raises E0403 for a value that no stage computes: one of all microbatches that each of them needs.
        """
        source = self.makers.get(microbatch_value[0])
        if source is None:
            raise _of_all_microbatches(microbatch_value[0])
        while microbatch_value not in microbatch_values:
            self._receive_next(source, microbatch_values)

    def receive_first(self, source: int, microbatch_values: MutableMapping[MicrobatchValue, Value]) -> None:
        """Receive what a coordinate sends before its turn, if it is not there yet."""
        while self.received.get(source, 0) < self.messages.sent_before_turn(source, self.coordinate):
            self._receive_next(source, microbatch_values)

    def _receive_next(self, source: int, microbatch_values: MutableMapping[MicrobatchValue, Value]) -> None:
        position = self.received.get(source, 0)
        self.received[source] = position + 1
        value, microbatch = self.messages.queues[source, self.coordinate][position]
        type_, loc = self._packed_type(value.type), self.location(value)
        received = self.receive(type_, source, loc, self.names.of(value, microbatch))
        microbatch_values[value, microbatch] = self._unpacked(received, value)

    @cached_property
    def names(self) -> ValueNames:
        """The names of the values of main."""
        return ValueNames(self.messages.graph)

    def location(self, value: Value) -> Location:
        """The location in the model where a value of main is computed, inside a called function for a call's result."""
        if value not in self._locations:
            self._locations[value] = made_at(self.module, value) or nowhere()
        return self._locations[value]

    def _packed(self, value: Value) -> Value:
        """A value in the dtype in which it is sent."""
        type_ = self._packed_type(value.type)
        return value if type_ == value.type else _cast(value, type_)

    def _packed_type(self, type_: Type) -> Type:
        tensor = from_mlir(type_)
        if self.dtype is None or not tensor.dtype.is_floating_point or tensor.dtype.itemsize <= self.dtype.itemsize:
            return type_
        return to_mlir(replace(tensor, dtype=self.dtype))

    def _unpacked(self, value: Value, like: Value) -> Value:
        return value if value.type == like.type else _cast(value, like.type)


@dataclass(frozen=True)
class ValueNames:
    """The names of the values of main, from which all entries are built: "forward_0[1]@3" in microbatch 3."""

    graph: Graph

    def of(self, value: Value, microbatch: int | None = None) -> str:
        """The name of a value, for one microbatch or for the step."""
        return self._names[value] + ("" if microbatch is None else f"@{microbatch}")

    @cached_property
    def _names(self) -> dict[Value, str]:
        names = {value: f"{record['kind']} {record['name']}" for value, record in self.graph.arguments}
        for position, node in enumerate(self.graph.nodes):
            name = node.callee or f"{node.name}:{position}"
            names.update({value: f"{name}[{index}]" for index, value in enumerate(node.values)})
        return names


def nowhere() -> Location:
    """The location of an operation without a place in the model."""
    return to_location(Origin())


def _cast(value: Value, type_: Type) -> Value:
    [cast] = build(Call(_CAST, (value,), {"dtype": from_mlir(type_).dtype}), [type_], nowhere())
    return cast


def _of_all_microbatches(value: Value) -> StrettoError:
    origin = from_location(value.owner.location)
    name = value.owner.name.partition(".")[2]
    return StrettoError(
        "E0403",
        f'"{name}" is computed of all microbatches, and work that belongs to no stage needs it for each of them',
        span=Span(origin.file, origin.line) if origin.file else None,
        expected="a loss that is a sum or a mean over the microbatches, or stages whose backward needs the number",
        help="say in the pipeline: per microbatch; or compute the last function of the loss outside of the model",
    )
