"""Decode a module, once for all ranks: functions of steps, whose values are in numbered slots."""

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
from ..types import TensorType, from_mlir, is_future, is_tensor
from .errors import NO_MEANING, InterpreterError

CALL = "func.call"
UNPACK = "unpack"
"""The step that unpacks a list of tensors."""


@dataclass(frozen=True)
class Ref:
    """An argument that refers to the value in a slot."""

    slot: int


@dataclass(frozen=True)
class Step:
    """One operation: arguments in schema order, with `Ref`s for values."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[int, ...]
    """The slot of each result."""
    free: tuple[int, ...]
    """Slots whose last use is this step."""
    origin: Origin
    callee: str = ""
    """The called function, of a call."""
    microbatch: Microbatch | None = None
    """The microbatch of a call, or several interleaved ones; None: the caller's."""
    turn: int | None = None
    """The index of its microbatch among the caller's interleaved ones."""

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
    """The type of each slot (of a future, its tensor's); None for lists and for results that are not computed."""
    argument_records: tuple[Record, ...]
    """Records of an entry function; empty for others, like the next."""
    result_records: tuple[Record, ...]


@dataclass(frozen=True)
class Port:
    """An argument or a result of the whole program."""

    record: Record
    type: TensorType
    places: tuple[int | None, ...]
    """By entry function, its position there; None if the entry function does not take (return) it."""


@dataclass(frozen=True)
class Code:
    """All functions of a module."""

    level: Level
    mesh: Mesh
    bodies: dict[str, Body]
    axis: str | None
    """The pipeline axis, of a pipelined module in order."""
    entries: tuple[Body, ...]
    """The entry functions: one per coordinate on that axis, else only `main`."""
    arguments: tuple[Port, ...]
    results: tuple[Port, ...]

    def global_shape(self, type_: TensorType) -> tuple[int, ...]:
        """The shape of the global tensor."""
        return type_.shape if self.level is Level.ATEN else type_.global_shape(self.mesh)


def decode(module: Module) -> Code:
    """Decode every function. E0652 for a missing entry function, and for an operation that is not Stretto's."""
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
    arguments = _ports(entries, [(e.arguments, e.argument_records) for e in entries], is_ordered=axis is not None)
    results = _ports(entries, [(e.results, e.result_records) for e in entries], is_ordered=axis is not None)
    return Code(module.level, module.mesh, bodies, axis, entries, arguments, results)


def _ports(
    entries: Sequence[Body], sides: Sequence[tuple[tuple[int, ...], tuple[Record, ...]]], *, is_ordered: bool
) -> tuple[Port, ...]:
    """The arguments (or results) of all entry functions, in program order."""
    ports: dict[int, Port] = {}
    for number, (body, (slots, records)) in enumerate(zip(entries, sides, strict=True)):
        for position, (type_, record) in enumerate(zip(_tensors(body, slots), records, strict=True)):
            order = record.get("order") if is_ordered else position
            if not isinstance(order, int):
                raise InterpreterError(
                    NO_MEANING, f'argument or result {position} of function "{body.name}" has no "order"'
                )
            port = ports.setdefault(order, Port(record, type_, (None,) * len(entries)))
            if (port.record, port.type) != (record, type_):
                raise InterpreterError(
                    NO_MEANING,
                    f'function "{body.name}" has another tensor of "order" {order} than other entry functions',
                )
            ports[order] = replace(port, places=(*port.places[:number], position, *port.places[number + 1 :]))
    return tuple(ports[order] for order in sorted(ports))


def _check_calls(bodies: dict[str, Body], name: str, callers: tuple[str, ...]) -> None:
    """E0652 for a function that is not defined, or that calls itself."""
    if name not in bodies:
        raise InterpreterError(NO_MEANING, f'function "{name}" is called but not defined')
    if name in callers:
        raise InterpreterError(NO_MEANING, f'function "{name}" calls itself')
    for called in dict.fromkeys(s.callee for s in bodies[name].steps if s.callee):
        _check_calls(bodies, called, (*callers, name))


def decoded(function: Operation) -> list[Operation]:
    """The operations that become steps: all but the terminator and packing casts, which `read` sees through."""
    *body, _ = operations(function)
    return [op for op in body if not is_packing(op) or _is_unpacking(op)]


def refs(argument: Any) -> list[int]:
    """The slots that an argument, or a sequence of arguments, refers to."""
    if isinstance(argument, Ref):
        return [argument.slot]
    return [slot for a in argument for slot in refs(a)] if isinstance(argument, (list, tuple)) else []


def used(step: Step) -> list[int]:
    """The slots that a step reads."""
    return refs((*step.args, *step.kwargs.values()))


class _Decoder:
    """Decodes one function."""

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
            raise InterpreterError(NO_MEANING, f'"{op.operation.name}" ({origin}) is not an operation of Stretto')
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
    last_use = {slot: index for index, step in enumerate(steps) for slot in (*step.out, *used(step))}
    returned = set(results)
    free: list[list[int]] = [[] for _ in steps]
    for slot, index in last_use.items():
        if slot not in returned:
            free[index].append(slot)
    if steps:
        free[0].extend(slot for slot in arguments if slot not in last_use and slot not in returned)
    return tuple(replace(s, free=tuple(f)) for s, f in zip(steps, free, strict=True))


def _is_unpacking(op: Operation) -> bool:
    return len(op.operands) == 1 and str(op.operands[0].type).startswith("tuple<")


def _tensor_type(type_: Type) -> TensorType | None:
    if is_tensor(type_) or is_future(type_):
        return from_mlir(type_)
    return None


def _tensors(body: Body, slots: Iterable[int]) -> list[TensorType]:
    types = []
    for slot in slots:
        type_ = body.types[slot]
        if type_ is None:
            raise InterpreterError(NO_MEANING, f'an argument or result of function "{body.name}" is not a tensor')
        types.append(type_)
    return types
