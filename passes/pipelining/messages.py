"""What crosses from rank to rank in a step: who sends which value of which microbatch to whom, in which order.

`Messages` knows it for all coordinates on the pipeline axis; `Transfers` builds the sends and receives of one of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace

import torch

from ...ir.bindings import Location, Type, Value
from ...ir.collectives import RECEIVE, SEND
from ...ir.locations import Origin, to_location
from ...ir.module import Module
from ...ir.operations import Call, build
from ...ir.types import from_mlir, to_mlir
from ...schedules.schedule import Kind, Schedule, Task
from ..graph import Graph, Node, made_at
from .attributes import SPREAD, meeting_of

_CAST = "aten._to_copy.default"
Parcel = tuple[Value, int]
"""A value of one microbatch."""


@dataclass
class Messages:
    """Between coordinates on the axis of the stages; what one sends another arrives in the order of sending."""

    schedule: Schedule
    graph: Graph
    segments: Mapping[tuple[Kind, int], Node]
    queues: dict[tuple[int, int], list[Parcel]] = field(default_factory=lambda: defaultdict(list))
    """By (source, destination): all that is sent while microbatches are worked on, in order."""
    _after: dict[tuple[Node, int], list[tuple[int, Parcel]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        takers = self._takers()
        for source, tasks in enumerate(self.schedule.order):
            for task in tasks:
                for node in () if task.kind.is_shared else self.calls(task):
                    for value in node.values:
                        for to in sorted(takers.get(value, set()) - {source}):
                            parcel = (value, task.microbatch)
                            self.queues[source, to].append(parcel)
                            self._after[node, task.microbatch].append((to, parcel))

    def calls(self, task: Task) -> list[Node]:
        """The calls that do a task, in order: for a full backward both parts, where it is parted."""
        if task.kind.is_shared:
            return [self.segments[task.kind, SPREAD]]
        kinds = (Kind.BW, Kind.B, Kind.W) if task.kind is Kind.BW else (task.kind,)
        return [self.segments[kind, task.stage] for kind in kinds if (kind, task.stage) in self.segments]

    def sent_after(self, call: Node, microbatch: int) -> Iterable[tuple[int, Parcel]]:
        """What is sent when a call has been made for a microbatch, each with where to."""
        return self._after.get((call, microbatch), ())

    def _takers(self) -> dict[Value, set[int]]:
        """The coordinates whose segments take each value."""
        found: dict[Value, set[int]] = defaultdict(set)
        everyone = range(self.schedule.ranks)
        for (_, stage), node in self.segments.items():
            for value in node.operands:
                found[value].update(everyone if stage == SPREAD else [self.schedule.placement[stage]])
        for node in self.graph.nodes:
            if meeting_of(node.op) is not None:
                for value in node.operands:
                    found[value].update(everyone)
        return found


@dataclass
class Transfers:
    """Builds them at the insertion point. What one coordinate sends another is received in the order of sending."""

    module: Module
    messages: Messages
    makers: Mapping[Value, int]
    """The coordinate that sends each value of a microbatch."""
    axis: str
    at: int
    dtype: torch.dtype | None = None
    """What floating values of microbatches are cast to where they cross; None: nothing is."""
    received: dict[int, int] = field(default_factory=dict)
    """How many of the messages of each other coordinate were received."""
    _places: dict[Value, Location] = field(default_factory=dict)

    def send(self, value: Value, to: int, loc: Location) -> None:
        """Send a tensor as it is."""
        build(Call(SEND, (value, self.axis, to)), [], loc)

    def receive(self, type_: Type, source: int, loc: Location) -> Value:
        """Receive the next tensor of a coordinate."""
        tensor = from_mlir(type_)
        call = Call(RECEIVE, (self.axis, source, list(tensor.shape), tensor.dtype))
        [made] = build(call, [type_], loc)
        return made

    def send_results(self, node: Node, microbatch: int, parts: Mapping[Parcel, Value]) -> None:
        """Send what other coordinates need of a call's results."""
        for to, parcel in self.messages.sent_after(node, microbatch):
            self.send(self._packed(parts[parcel]), to, self.place(parcel[0]))

    def receive_until(self, parcel: Parcel, parts: MutableMapping[Parcel, Value]) -> None:
        """Receive what the coordinate that makes a parcel sent, in its order, up to the parcel."""
        source = self.makers[parcel[0]]
        queue = self.messages.queues[source, self.at]
        while parcel not in parts:
            number = self.received.get(source, 0)
            self.received[source] = number + 1
            value, microbatch = queue[number]
            made = self.receive(self._packed_type(value.type), source, self.place(value))
            parts[value, microbatch] = self._unpacked(made, value)

    def place(self, value: Value) -> Location:
        """Where in the model a value of main is made: in the function that gives it, where a call does."""
        if value not in self._places:
            self._places[value] = made_at(self.module, value) or nowhere()
        return self._places[value]

    def _packed(self, value: Value) -> Value:
        """A value in the dtype in which it crosses."""
        type_ = self._packed_type(value.type)
        return value if type_ == value.type else _cast(value, type_)

    def _packed_type(self, type_: Type) -> Type:
        tensor = from_mlir(type_)
        if self.dtype is None or not tensor.dtype.is_floating_point or tensor.dtype.itemsize <= self.dtype.itemsize:
            return type_
        return to_mlir(replace(tensor, dtype=self.dtype))

    def _unpacked(self, value: Value, like: Value) -> Value:
        return value if value.type == like.type else _cast(value, like.type)


def nowhere() -> Location:
    """The location of what belongs to no place in the model."""
    return to_location(Origin())


def _cast(value: Value, type_: Type) -> Value:
    [made] = build(Call(_CAST, (value,), {"dtype": from_mlir(type_).dtype}), [type_], nowhere())
    return made
