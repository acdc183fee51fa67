"""Lower a module of level `comm` to a program: an instruction list per function, slots for values, source locations.

All ranks run the same instructions; the runtime derives coordinates, peers and offsets from a rank's position on the
mesh. In `main`, the operations that the forward's results need come before those that only the backward needs. A
pipelined module has an entry function per stage, and inputs and outputs list the stages that take or give them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from ...ir.bindings import Operation, Type, Value, mlir
from ...ir.collectives import COLLECTIVES, RECEIVE_START, SEND
from ...ir.kinds import kind_of
from ...ir.lanes import lane_of
from ...ir.locations import Origin, from_location
from ...ir.module import (
    Module,
    Record,
    argument_records,
    callee,
    entry,
    name_of,
    operations,
    result_records,
    terminator,
)
from ...ir.operations import Call, flatten, is_packing, read, results_of
from ...ir.pipelined_module import MICROBATCH, entries, microbatch_of, microbatches, pipeline_axis, rank_axes, turn_of
from ...ir.placement import Mesh, axes_size, chunk_size
from ...ir.types import TensorType, from_mlir, is_tensor
from ...runtime.program.arguments import Slot, dtype_name
from ...runtime.program.entries import MICROBATCH_INDEX, depends_on_microbatch
from ...runtime.program.mesh import RankMesh
from ...runtime.program.records import Function, Input, Instruction, Kind, Location, Output, Pipeline, Shard, SlotType
from .frees import with_frees
from .message_sources import argument_sources, result_sources

_RENAMED = {
    "comm.shard": "rank.shard",
    "comm.offset": "rank.offset",
    "comm.mask": "rank.mask",
    "comm.random": "rank.random",
}
_KEYWORDS = {
    **{each.start: each.arguments for each in COLLECTIVES.values()},
    "comm.shard": ("axes", "dim", "chunk"),
    "comm.mask": ("axes", "dim", "chunk", "extent", "fill"),
}
"""By operation, the program's keywords of the constants after the tensor operand."""


@dataclass(frozen=True)
class Lowered:
    """The parts of a program that come from the IR."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    functions: dict[str, Function]
    locations: tuple[Location, ...]
    mesh: Mesh
    """The rank axes, without the microbatch axis."""
    pipeline: Pipeline | None
    types: tuple[SlotType, ...]


def lower_program(module: Module) -> Lowered:
    """Lower a module in which every collective and receive is a start and a wait."""
    locations, types = _Locations(), _Types()
    functions: dict[str, Function] = {}
    mesh = rank_axes(module.mesh)
    for name, function in module.functions().items():
        functions[name] = _Body(function, locations, types, RankMesh(mesh)).lowered(is_main=name == "main")
    inputs, outputs = _Ports[Input](), _Ports[Output]()
    for stage, function in enumerate(entries(module)):
        lists = functions[name_of(function)]
        taken = zip(argument_records(function), entry(function).arguments, lists.arguments, strict=True)
        given = zip(result_records(function), terminator(function).operands, lists.results, strict=True)
        arguments = inputs.add(stage, ((r, _input(r, from_mlir(v.type), slot, mesh), slot) for r, v, slot in taken))
        results = outputs.add(stage, ((r, _output(r, from_mlir(v.type), slot, mesh), slot) for r, v, slot in given))
        functions[name_of(function)] = replace(lists, arguments=arguments, results=results)
    pipeline = _pipeline(module)
    count = None if pipeline is None else len(pipeline.entries)
    return Lowered(
        inputs.all(count), outputs.all(count), functions, tuple(locations.table), mesh, pipeline, tuple(types.table)
    )


def _pipeline(module: Module) -> Pipeline | None:
    """The pipeline axis, entry functions and number of microbatches of a pipelined module; None for others."""
    axis = pipeline_axis(module)
    if axis is None:
        return None
    return Pipeline(axis, tuple(name_of(function) for function in entries(module)), microbatches(module.mesh))


Port = TypeVar("Port", Input, Output)


@dataclass
class _Ports(Generic[Port]):
    """The inputs (or the outputs) of all entry functions, by their order in the program."""

    _by_order: dict[int, Port] = field(default_factory=dict)
    _stages: dict[int, list[int]] = field(default_factory=dict)

    def add(self, stage: int, ports: Iterable[tuple[Record, Port, int]]) -> tuple[int, ...]:
        """Add the ports of a stage's entry function; returns their slots there in program order."""
        slots = {}
        for position, (record, port, slot) in enumerate(ports):
            order = int(record.get("order", position))
            self._by_order.setdefault(order, port)
            self._stages.setdefault(order, []).append(stage)
            slots[order] = slot
        return tuple(slots[order] for order in sorted(slots))

    def all(self, stages: int | None) -> tuple[Port, ...]:
        """All ports in order. With `stages`, the number of stages, each lists its stages and has no slot."""
        if stages is None:
            return tuple(self._by_order[order] for order in sorted(self._by_order))
        some = {order: tuple(users) if len(users) < stages else None for order, users in self._stages.items()}
        return tuple(replace(self._by_order[order], slot=0, stages=some[order]) for order in sorted(self._by_order))


@dataclass
class _Locations:
    """The table of source locations, without duplicates."""

    table: dict[Location, int] = field(default_factory=dict)

    def index(self, origin: Origin) -> int | None:
        """The index of a location; None for an operation without one."""
        if not origin.file and not origin.module_path:
            return None
        return self.table.setdefault(Location(origin.file, origin.line, origin.module_path), len(self.table))


@dataclass
class _Types:
    """The table of distinct types of slots."""

    table: dict[SlotType, int] = field(default_factory=dict)
    _indices: dict[Type, int | None] = field(default_factory=dict)

    def index(self, type_: Type) -> int | None:
        """The index of a value's type; None for a value that is no tensor."""
        if type_ not in self._indices:
            self._indices[type_] = self._new(type_)
        return self._indices[type_]

    def _new(self, type_: Type) -> int | None:
        is_future = isinstance(type_, mlir.Type) and str(type_).startswith("!async.value<")
        if not is_future and not is_tensor(type_):
            return None
        tensor = from_mlir(type_)
        return self.table.setdefault(SlotType(dtype_name(tensor.dtype), tensor.shape, is_future), len(self.table))


class _Body:
    """The instructions of one function; every value has its own slot."""

    def __init__(self, function: Operation, locations: _Locations, types: _Types, mesh: RankMesh) -> None:
        self.function = function
        self.locations = locations
        self.types = types
        self.mesh = mesh
        self.slots: dict[Value, int] = {}
        self.arguments = tuple(self._slot(a) for a in entry(function).arguments)
        self.sources = argument_sources(entry(function).arguments, argument_records(function))
        """What each value is made of, for the messages that carry it."""

    def lowered(self, *, is_main: bool) -> Function:
        """The instruction list, with the slots freed after their last use."""
        body = [op for op in operations(self.function) if not is_packing(op)][:-1]
        backward_at = None
        if is_main:
            body, backward_at = self._forward_first(body)
        code = [self._instruction(op) for op in body]
        results = tuple(self.slots[v] for v in terminator(self.function).operands)
        code = with_frees(code, self.arguments, results, self.mesh)
        types = tuple(self.types.index(value.type) for value in self.slots)
        return Function(
            len(self.slots), self.arguments, results, tuple(code), backward_at, types, kind=_stated_kind(self.function)
        )

    def _forward_first(self, body: list[Operation]) -> tuple[list[Operation], int | None]:
        """Move what the forward's results need to the front, in stable order; also returns where the rest begins."""
        records = argument_records(self.function)
        tangents = [
            a for a, r in zip(entry(self.function).arguments, records, strict=True) if r.get("kind") == "tangent"
        ]
        if not tangents:
            return body, None
        late = _dependents(tangents, body)
        pairs = zip(terminator(self.function).operands, result_records(self.function), strict=True)
        early = [v for v, record in pairs if record.get("kind") != "gradient"]
        for op in body:
            if op not in late and not from_location(op.location).backward:
                early.extend(flatten(results_of(op)))
        needed = _needed(early, body)
        forward = [op for op in body if op in needed]
        return forward + [op for op in body if op not in needed], len(forward)

    def _instruction(self, op: Operation) -> Instruction:
        loc = self.locations.index(from_location(op.location))
        name = callee(op)
        if name is not None:
            self.sources.update(result_sources(op, self.sources))
            args = (name, [Slot(self.slots[v]) for v in op.operands])
            microbatch = microbatch_of(op)
            kwargs = (
                {}
                if microbatch is None
                else {MICROBATCH: list(microbatch) if isinstance(microbatch, tuple) else microbatch}
            )
            kwargs |= _turn(op)
            return Instruction("call", args, kwargs, tuple(self._slot(r) for r in op.results), (), loc)
        call = read(op)
        if call is None:
            raise RuntimeError(f"cannot lower {op}")
        out = tuple(self._slot(r) if list(r.uses) or is_tensor(r.type) else None for r in flatten(results_of(op)))
        self.sources.update(result_sources(op, self.sources))
        args, kwargs = self._arguments(call)
        name = _RENAMED.get(call.name, call.name)
        timed = depends_on_microbatch(Instruction(name, args, kwargs))
        return Instruction(name, args, kwargs | _turn(op) if timed else kwargs, out, (), loc, lane_of(op))

    def _arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(self._argument(a) for a in call.args)
        if call.name == "comm.offset":
            return (), {"axes": args[0], "chunk": args[1]}
        if call.name == RECEIVE_START:
            return (), dict(zip(("axis", "peer", "size", "dtype", "carries"), args, strict=False))
        if call.name == SEND:
            names = dict(zip(("axis", "peer", "carries"), args[1:], strict=False))
            return args[:1], names | ({"made_by": self.sources[call.args[0]]} if "carries" in names else {})
        if call.name == "comm.random":
            return args[:2], dict(zip(("size", "axes", "chunks", "below"), (*args[2:], None), strict=False))
        if call.name in _KEYWORDS:
            return args[:1], dict(zip(_KEYWORDS[call.name], args[1:], strict=True))
        return args, {key: self._argument(value) for key, value in call.kwargs.items()}

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, mlir.Value):
            return Slot(self.slots[argument])
        if isinstance(argument, (list, tuple)):
            return [self._argument(a) for a in argument]
        return argument

    def _slot(self, value: Value) -> int:
        return self.slots.setdefault(value, len(self.slots))


def _stated_kind(function: Operation) -> Kind | None:
    kind = kind_of(function)
    return None if kind is None else Kind(kind.name, kind.operands, kind.results, dict(kind.attributes))


def _turn(op: Operation) -> dict[str, Any]:
    """The keyword for the index of an operation's microbatch among those of its interleaved call."""
    turn = turn_of(op)
    return {} if turn is None else {MICROBATCH_INDEX: turn}


def _dependents(values: Sequence[Value], body: Sequence[Operation]) -> set[Operation]:
    """The operations that depend on one of the values."""
    reached = set(values)
    dependents: set[Operation] = set()
    for op in body:
        if any(v in reached for v in _operands(op)):
            dependents.add(op)
            reached.update(flatten(results_of(op)))
    return dependents


def _needed(values: Iterable[Value], body: Sequence[Operation]) -> set[Operation]:
    """The operations that the values depend on."""
    reached = set(values)
    needed: set[Operation] = set()
    for op in reversed(body):
        if any(r in reached for r in flatten(results_of(op))):
            needed.add(op)
            reached.update(_operands(op))
    return needed


def _operands(op: Operation) -> list[Value]:
    """The operands of an operation, with lists flattened."""
    call = read(op)
    return list(op.operands) if call is None else call.values()


def _shards(type_: TensorType, mesh: Mesh) -> tuple[Shard, ...]:
    shape = type_.global_shape(mesh)
    placement = type_.placement_on(mesh)
    return tuple(
        Shard(dim, axes, chunk_size(shape[dim], axes_size(mesh, axes)), shape[dim], placement.blocks_of(dim))
        for dim, axes in enumerate(placement.dims)
        if axes
    )


def _kind(record: Record) -> str:
    """The kind of an input or output: of a buffer that is a state, that."""
    return "state" if record.get("state") else str(record["kind"])


def _input(record: Record, type_: TensorType, slot: int, mesh: Mesh) -> Input:
    return Input(
        name=record["name"],
        kind=_kind(record),
        shape=type_.global_shape(mesh),
        dtype=dtype_name(type_.dtype),
        slot=slot,
        shards=_shards(type_, mesh),
        aliases=tuple(record.get("aliases", ())),
        requires_grad=bool(record.get("requires_grad", False)),
        index=record["index"] if record["index"] >= 0 else None,
        stored_over=tuple(record.get("stored", ())),
    )


def _output(record: Record, type_: TensorType, slot: int, mesh: Mesh) -> Output:
    return Output(
        name=record["name"],
        kind=_kind(record),
        shape=type_.global_shape(mesh),
        dtype=dtype_name(type_.dtype),
        slot=slot,
        shards=_shards(type_, mesh),
        index=record["index"],
        unreduced_over=tuple(axis for axis, _ in type_.placement_on(mesh).partial),
    )
