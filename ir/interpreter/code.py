"""A module decoded once for all ranks: functions of steps, whose values live in numbered slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..bindings import Operation, Type, Value, mlir
from ..locations import Origin, from_location
from ..module import Level, Module, Record, argument_records, callee, entry, operations, result_records, terminator
from ..operations import is_packing, read
from ..pipelined_module import Microbatch, entry_names, microbatch_of, pipeline_axis, turn_of
from ..placement import Mesh
from ..types import TensorType, from_mlir, is_tensor
from .errors import NO_MEANING, InterpreterError

CALL = "func.call"
UNPACK = "unpack"
"""Takes one list of tensors, gives its elements."""


@dataclass(frozen=True)
class Ref:
    """An argument that is the value of a slot."""

    slot: int


@dataclass(frozen=True)
class Step:
    """One operation: arguments in schema order with `Ref`s in the values' places."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[int, ...]
    """The slot of each result."""
    free: tuple[int, ...]
    """Slots whose values nothing uses after this step."""
    origin: Origin
    callee: str = ""
    """The function that a call calls."""
    microbatch: Microbatch | None = None
    """The microbatch that a call is about, or several; None where it is the caller's."""
    turn: int | None = None
    """Of several microbatches of the caller, which one it is about."""

    def __str__(self) -> str:
        name = f"call of {self.callee}" if self.callee else self.name
        return f'"{name}" ({self.origin})'


@dataclass(frozen=True)
class Body:
    """One function."""

    name: str
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    steps: tuple[Step, ...]
    types: tuple[TensorType | None, ...]
    """The type of each slot; of a future that of its tensor; None for lists of tensors and for what is not computed."""
    argument_records: tuple[Record, ...]
    """Of an entry; of other functions empty, as are the next."""
    result_records: tuple[Record, ...]


@dataclass(frozen=True)
class Port:
    """An argument or a result of the whole program."""

    record: Record
    type: TensorType
    places: tuple[int | None, ...]
    """By entry, where it stands among those of the entry; None where the entry does not take (give) it."""


@dataclass(frozen=True)
class Code:
    """All functions of a module."""

    level: Level
    mesh: Mesh
    bodies: dict[str, Body]
    axis: str | None
    """The axis of the stages, of a module in order."""
    entries: tuple[Body, ...]
    """Where ranks begin: one for each coordinate on that axis, else `main` alone."""
    arguments: tuple[Port, ...]
    results: tuple[Port, ...]

    def global_shape(self, type_: TensorType) -> tuple[int, ...]:
        """The whole tensor's shape."""
        return type_.shape if self.level is Level.ATEN else type_.global_shape(self.mesh)


def decode(module: Module) -> Code:
    """Decode every function; E0652 where an entry is missing, or an operation is not Stretto's."""
    functions = {name: f for name, f in module.functions().items() if len(f.regions[0].blocks)}
    axis = pipeline_axis(module)
    names = entry_names(module)
    for name in names:
        if name not in functions:
            raise InterpreterError(
                NO_MEANING, f'the module has no function "{name}"', help=f"name the entry function {name}"
            )
    bodies = {name: _Decoder(function).body(name, name in names) for name, function in functions.items()}
    for name in names:
        _check_calls(bodies, name, ())
    entries = tuple(bodies[name] for name in names)
    taken = _ports(entries, [(e.arguments, e.argument_records) for e in entries], is_ordered=axis is not None)
    given = _ports(entries, [(e.results, e.result_records) for e in entries], is_ordered=axis is not None)
    return Code(module.level, module.mesh, bodies, axis, entries, taken, given)


def _ports(
    entries: Sequence[Body], sides: Sequence[tuple[tuple[int, ...], tuple[Record, ...]]], *, is_ordered: bool
) -> tuple[Port, ...]:
    """What all entries take (or give) together, in the order of the whole program."""
    found: dict[int, Port] = {}
    for number, (body, (slots, records)) in enumerate(zip(entries, sides, strict=True)):
        for place, (type_, record) in enumerate(zip(_tensors(body, slots), records, strict=True)):
            order = record.get("order") if is_ordered else place
            if not isinstance(order, int):
                raise InterpreterError(
                    NO_MEANING, f'function "{body.name}" does not say where its number {place} stands in the program'
                )
            port = found.setdefault(order, Port(record, type_, (None,) * len(entries)))
            if (port.record, port.type) != (record, type_):
                raise InterpreterError(
                    NO_MEANING,
                    f'function "{body.name}" takes or gives another tensor than other entries as number {order}',
                )
            found[order] = replace(port, places=(*port.places[:number], place, *port.places[number + 1 :]))
    return tuple(found[order] for order in sorted(found))


def _check_calls(bodies: dict[str, Body], name: str, callers: tuple[str, ...]) -> None:
    """E0652 for a function that is not there, or that calls itself."""
    if name not in bodies:
        raise InterpreterError(NO_MEANING, f'function "{name}" is called, but the module does not say what it does')
    if name in callers:
        raise InterpreterError(NO_MEANING, f'function "{name}" calls itself, and would for ever')
    for called in dict.fromkeys(s.callee for s in bodies[name].steps if s.callee):
        _check_calls(bodies, called, (*callers, name))


def decoded(function: Operation) -> list[Operation]:
    """The operations that are steps, in order: all but the terminator, and packing, since `read` looks through it."""
    *found, _ = operations(function)
    return [op for op in found if not is_packing(op) or _is_unpacking(op)]


def refs(argument: Any) -> list[int]:
    """The slots that an argument, or a sequence of arguments, refers to."""
    if isinstance(argument, Ref):
        return [argument.slot]
    return [slot for a in argument for slot in refs(a)] if isinstance(argument, (list, tuple)) else []


def used(step: Step) -> list[int]:
    """The slots that a step reads."""
    return refs((*step.args, *step.kwargs.values()))


class _Decoder:
    """Numbers the values of one function."""

    def __init__(self, function: Operation) -> None:
        self.function = function
        self.slots: dict[Value, int] = {}
        self.types: list[TensorType | None] = []

    def body(self, name: str, is_entry: bool) -> Body:
        arguments = tuple(self._new(a) for a in entry(self.function).arguments)
        last = terminator(self.function)
        raw = [self._step(op) for op in decoded(self.function)]
        results = tuple(self.slots[v] for v in last.operands)
        return Body(
            name,
            arguments,
            results,
            _with_frees(raw, arguments, results),
            tuple(self.types),
            tuple(argument_records(self.function)) if is_entry else (),
            tuple(result_records(self.function)) if is_entry else (),
        )

    def _new(self, value: Value) -> int:
        self.slots[value] = len(self.types)
        self.types.append(_tensor_type(value.type))
        return self.slots[value]

    def _step(self, op: Operation) -> Step:
        origin = from_location(op.location)
        name = callee(op)
        if name is not None:
            args = tuple(Ref(self.slots[v]) for v in op.operands)
            return Step(CALL, args, {}, self._results(op), (), origin, name, microbatch_of(op), turn_of(op))
        if is_packing(op):
            return Step(UNPACK, (Ref(self.slots[op.operands[0]]),), {}, self._results(op), (), origin)
        call = read(op)
        if call is None:
            raise InterpreterError(NO_MEANING, f'"{op.operation.name}" ({origin}) is no operation of a Stretto module')
        args = tuple(self._argument(a) for a in call.args)
        kwargs = {key: self._argument(value) for key, value in call.kwargs.items()}
        return Step(call.name, args, kwargs, self._results(op), (), origin, turn=turn_of(op))

    def _results(self, op: Operation) -> tuple[int, ...]:
        return tuple(self._new(r) for r in op.results)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, mlir.Value):
            return Ref(self.slots[argument])
        return [self._argument(a) for a in argument] if isinstance(argument, list) else argument


def _with_frees(steps: Sequence[Step], arguments: Iterable[int], results: Iterable[int]) -> tuple[Step, ...]:
    last = {slot: i for i, step in enumerate(steps) for slot in (*step.out, *used(step))}
    kept = set(results)
    free: list[list[int]] = [[] for _ in steps]
    for slot, i in last.items():
        if slot not in kept:
            free[i].append(slot)
    if steps:
        free[0].extend(slot for slot in arguments if slot not in last and slot not in kept)
    return tuple(replace(s, free=tuple(f)) for s, f in zip(steps, free, strict=True))


def _is_unpacking(op: Operation) -> bool:
    return len(op.operands) == 1 and str(op.operands[0].type).startswith("tuple<")


def _tensor_type(type_: Type) -> TensorType | None:
    if is_tensor(type_) or str(type_).startswith("!async.value<tensor"):
        return from_mlir(type_)
    return None


def _tensors(body: Body, slots: Iterable[int]) -> list[TensorType]:
    found = []
    for slot in slots:
        type_ = body.types[slot]
        if type_ is None:
            raise InterpreterError(NO_MEANING, f'function "{body.name}" takes or gives something that is no tensor')
        found.append(type_)
    return found
