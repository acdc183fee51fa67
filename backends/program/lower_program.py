"""A module of level `comm` as a program: one instruction list per function, slots for values, a table of places.

All ranks run the same instructions; what differs (coordinates, peers, offsets) the runtime derives from a rank's
place on the mesh. Of main, what the backward alone needs is put behind everything that the forward's results need.
Where stages have entries of their own, there is a list for each, and inputs and outputs say which stages' they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from ...ir.bindings import Operation, Value, mlir
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
from ...ir.pipelined_module import MICROBATCH, entries, microbatch_of, microbatches, pipeline_axis, space, turn_of
from ...ir.placement import Mesh, axes_size, chunk_size
from ...ir.types import TensorType, from_mlir
from ...runtime.program.arguments import Slot, dtype_name
from ...runtime.program.entries import MICROBATCH_INDEX, depends_on_microbatch
from ...runtime.program.records import Function, Input, Instruction, Location, Output, Pipeline, Shard

_RENAMED = {
    "comm.shard": "rank.shard",
    "comm.offset": "rank.offset",
    "comm.mask": "rank.mask",
    "comm.random": "rank.random",
}
_KEYWORDS = {
    "comm.all_reduce_start": ("axes", "reduce"),
    "comm.all_gather_start": ("axes", "dim"),
    "comm.reduce_scatter_start": ("axes", "dim", "reduce"),
    "comm.all_to_all_start": ("axes", "split_dim", "concat_dim"),
    "comm.send": ("axis", "peer"),
    "comm.shard": ("axes", "dim", "chunk"),
    "comm.mask": ("axes", "dim", "chunk", "extent", "fill"),
}
"""The constants of our operations after their tensor, by the keywords that a program gives them."""


@dataclass(frozen=True)
class Lowered:
    """The parts of a program that come from the IR."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    functions: dict[str, Function]
    locations: tuple[Location, ...]
    mesh: Mesh
    """The axes of ranks."""
    pipeline: Pipeline | None


def lower_program(module: Module) -> Lowered:
    """Instruction lists, inputs and outputs of a module whose collectives and receives are started and waited on."""
    places = _Places()
    functions: dict[str, Function] = {}
    for name, function in module.functions().items():
        functions[name] = _Body(function, places).lowered(is_main=name == "main")
    mesh = space(module.mesh)
    inputs, outputs = _Side[Input](), _Side[Output]()
    for stage, function in enumerate(entries(module)):
        lists = functions[name_of(function)]
        takes = zip(argument_records(function), entry(function).arguments, lists.arguments, strict=True)
        gives = zip(result_records(function), terminator(function).operands, lists.results, strict=True)
        arguments = inputs.add(stage, ((r, _input(r, from_mlir(v.type), slot, mesh), slot) for r, v, slot in takes))
        results = outputs.add(stage, ((r, _output(r, from_mlir(v.type), slot, mesh), slot) for r, v, slot in gives))
        functions[name_of(function)] = replace(lists, arguments=arguments, results=results)
    pipeline = _pipeline(module)
    count = None if pipeline is None else len(pipeline.entries)
    return Lowered(inputs.all(count), outputs.all(count), functions, tuple(places.table), mesh, pipeline)


def _pipeline(module: Module) -> Pipeline | None:
    """Who begins where, of a module whose stages have entries of their own."""
    axis = pipeline_axis(module)
    if axis is None:
        return None
    return Pipeline(axis, tuple(name_of(function) for function in entries(module)), microbatches(module.mesh))


Port = TypeVar("Port", Input, Output)


@dataclass
class _Side(Generic[Port]):
    """What all entries take, or give, each once, by its place among those of the program."""

    _found: dict[int, Port] = field(default_factory=dict)
    _stages: dict[int, list[int]] = field(default_factory=dict)

    def add(self, stage: int, ports: Iterable[tuple[Record, Port, int]]) -> tuple[int, ...]:
        """Those of one entry, with their slots there; the slots in the order of the program."""
        slots = {}
        for place, (record, port, slot) in enumerate(ports):
            order = int(record.get("order", place))
            self._found.setdefault(order, port)
            self._stages.setdefault(order, []).append(stage)
            slots[order] = slot
        return tuple(slots[order] for order in sorted(slots))

    def all(self, stages: int | None) -> tuple[Port, ...]:
        """All in order; in a program of so many stages with those that each is of, and without slots."""
        if stages is None:
            return tuple(self._found[order] for order in sorted(self._found))
        whose = {order: tuple(mine) if len(mine) < stages else None for order, mine in self._stages.items()}
        return tuple(replace(self._found[order], slot=0, stages=whose[order]) for order in sorted(self._found))


@dataclass
class _Places:
    """The table of source locations, each once."""

    table: dict[Location, int] = field(default_factory=dict)

    def index(self, origin: Origin) -> int | None:
        """The number of a place; None for an operation that has none."""
        if not origin.file and not origin.module_path:
            return None
        return self.table.setdefault(Location(origin.file, origin.line, origin.module_path), len(self.table))


class _Body:
    """One function's instructions; every value has a slot of its own."""

    def __init__(self, function: Operation, places: _Places) -> None:
        self.function = function
        self.places = places
        self.slots: dict[Value, int] = {}
        self.arguments = tuple(self._slot(a) for a in entry(function).arguments)

    def lowered(self, *, is_main: bool) -> Function:
        """The instruction list, with the slots freed after their last use."""
        body = [op for op in operations(self.function) if not is_packing(op)][:-1]
        backward_at = None
        if is_main:
            body, backward_at = self._forward_first(body)
        code = [self._instruction(op) for op in body]
        results = tuple(self.slots[v] for v in terminator(self.function).operands)
        code = _with_frees(code, self.arguments, results)
        return Function(len(self.slots), self.arguments, results, tuple(code), backward_at)

    def _forward_first(self, body: list[Operation]) -> tuple[list[Operation], int | None]:
        """A stable order in which all that the forward's results need comes first, and where the backward begins."""
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
        loc = self.places.index(from_location(op.location))
        name = callee(op)
        if name is not None:
            args = (name, [Slot(self.slots[v]) for v in op.operands])
            microbatch = microbatch_of(op)
            kwargs = {} if microbatch is None else {MICROBATCH: microbatch}
            kwargs |= _turn(op)
            return Instruction("call", args, kwargs, tuple(self._slot(r) for r in op.results), (), loc)
        call = read(op)
        if call is None:
            raise RuntimeError(f"no instruction for {op}")
        out = tuple(self._slot(r) if list(r.uses) else None for r in flatten(results_of(op)))
        args, kwargs = self._arguments(call)
        name = _RENAMED.get(call.name, call.name)
        timed = depends_on_microbatch(Instruction(name, args, kwargs))
        return Instruction(name, args, kwargs | _turn(op) if timed else kwargs, out, (), loc)

    def _arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(self._argument(a) for a in call.args)
        if call.name == "comm.offset":
            return (), {"axes": args[0], "chunk": args[1]}
        if call.name == "comm.receive_start":
            return (), dict(zip(("axis", "peer", "size", "dtype"), args, strict=True))
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


def _turn(op: Operation) -> dict[str, Any]:
    """Which of its caller's microbatches an operation is about, where they are several."""
    turn = turn_of(op)
    return {} if turn is None else {MICROBATCH_INDEX: turn}


def _dependents(values: Sequence[Value], body: Sequence[Operation]) -> set[Operation]:
    """The operations that use one of the values, directly or not."""
    tainted = set(values)
    found: set[Operation] = set()
    for op in body:
        if any(v in tainted for v in _operands(op)):
            found.add(op)
            tainted.update(flatten(results_of(op)))
    return found


def _needed(values: Iterable[Value], body: Sequence[Operation]) -> set[Operation]:
    """The operations that the values come from, directly or not."""
    wanted = set(values)
    found: set[Operation] = set()
    for op in reversed(body):
        if any(r in wanted for r in flatten(results_of(op))):
            found.add(op)
            wanted.update(_operands(op))
    return found


def _operands(op: Operation) -> list[Value]:
    """The values an operation uses, lists taken apart."""
    call = read(op)
    return list(op.operands) if call is None else call.values()


def _with_frees(code: list[Instruction], arguments: Sequence[int], results: Sequence[int]) -> list[Instruction]:
    """Each instruction with the slots that nothing uses after it; the forward frees what only it used."""
    last: dict[int, int] = dict.fromkeys(arguments, -1)
    for i, instruction in enumerate(code):
        for slot in (*instruction.reads(), *instruction.writes()):
            last[slot] = i
    kept = set(results)
    frees: list[list[int]] = [[] for _ in code]
    for slot, i in last.items():
        if i >= 0 and slot not in kept:
            frees[i].append(slot)
    return [
        Instruction(c.op, c.args, c.kwargs, c.out, tuple(sorted(free)), c.loc)
        for c, free in zip(code, frees, strict=True)
    ]


def _shards(type_: TensorType, mesh: Mesh) -> tuple[Shard, ...]:
    shape = type_.global_shape(mesh)
    dims = type_.placement_on(mesh).dims
    return tuple(
        Shard(dim, axes, chunk_size(shape[dim], axes_size(mesh, axes)), shape[dim])
        for dim, axes in enumerate(dims)
        if axes
    )


def _input(record: Record, type_: TensorType, slot: int, mesh: Mesh) -> Input:
    return Input(
        name=record["name"],
        kind=record["kind"],
        shape=type_.global_shape(mesh),
        dtype=dtype_name(type_.dtype),
        slot=slot,
        shards=_shards(type_, mesh),
        aliases=tuple(record.get("aliases", ())),
        requires_grad=bool(record.get("requires_grad", False)),
        index=record["index"] if record["index"] >= 0 else None,
    )


def _output(record: Record, type_: TensorType, slot: int, mesh: Mesh) -> Output:
    return Output(
        name=record["name"],
        kind=record["kind"],
        shape=type_.global_shape(mesh),
        dtype=dtype_name(type_.dtype),
        slot=slot,
        shards=_shards(type_, mesh),
        index=record["index"],
        unreduced_over=tuple(axis for axis, _ in type_.placement_on(mesh).partial),
    )
