"""What a function does to whoever calls it: the collectives it starts, the memory it needs, what becomes of futures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .values import Future, Opaque, Path, Storage, TensorValue, Value

Signature = tuple[tuple[object, ...], ...]
"""What a summary depends on: shapes, strides, dtypes, which arguments share memory, who else holds it, futures."""


@dataclass(frozen=True, eq=False)
class Summary:
    """One function for one signature of arguments; paths in it begin at the function."""

    arguments: tuple[Value, ...]
    results: tuple[Value, ...]
    peak_bytes: int
    """The most that is live above what is live at its entry; its arguments count as live there."""
    peak_at: Path
    events: tuple[int, ...]
    """Numbers of the collectives and messages of it and its callees, in order."""
    parts: tuple[tuple[int, Summary | None], ...]
    """The instructions that start them: index, and the summary where the instruction is a call."""
    name: str
    waited: tuple[tuple[Future, Path], ...] = ()
    """Futures among the arguments that it waits on, and where."""

    def path(self, position: int) -> Path:
        """The instruction of event number `position`."""
        for index, callee in self.parts:
            count = 1 if callee is None else len(callee.events)
            if position < count:
                here = ((self.name, index),)
                return here if callee is None else here + callee.path(position)
            position -= count
        raise IndexError(position)


@dataclass
class Entry:
    """Arguments as a callee sees them: copies on storages of its own, and the signature that they make."""

    values: list[Value] = field(default_factory=list)
    held: set[Storage] = field(default_factory=set)
    """Storages of the arguments that the caller, or one of its callers, keeps."""
    signature: list[tuple[object, ...]] = field(default_factory=list)


def entering(values: Sequence[Value], held: set[Storage]) -> Entry:
    """The arguments of a call; `held` are the storages that the caller keeps while the callee runs."""
    entry = Entry()
    own: dict[Storage, Storage] = {}
    numbers: dict[Storage, int] = {}

    def storage(outer: Storage) -> Storage:
        if outer not in own:
            own[outer] = Storage(outer.bytes, name=outer.name)
            numbers[outer] = len(numbers)
            if outer in held:
                entry.held.add(own[outer])
        return own[outer]

    def described(value: TensorValue) -> tuple[object, ...]:
        inner = storage(value.storage)
        return (value.meta, numbers[value.storage], inner.bytes, inner in entry.held)

    for value in values:
        match value:
            case TensorValue(meta, outer):
                entry.values.append(TensorValue(meta, storage(outer)))
                entry.signature.append(described(value))
            case Future(start, operand, result, waited):
                reads = TensorValue(operand.meta, storage(operand.storage))
                fills = TensorValue(result.meta, storage(result.storage))
                entry.values.append(Future(start, reads, fills, waited, given=True))
                entry.signature.append((*described(operand), *described(result), waited))
            case Opaque():
                entry.values.append(value)
                entry.signature.append((repr(value.value),))
    return entry


def leaving(summary: Summary, given: Sequence[Value], call: tuple[str, int]) -> list[Value]:
    """The results of a call in the caller's terms; what the callee made gets fresh values and storages."""
    values: dict[Value, Value] = dict(zip(summary.arguments, given, strict=True))
    storages: dict[Storage, Storage] = {}
    for inner, outer in values.items():
        storages.update(zip(inner.storages, outer.storages, strict=True))

    def storage(inner: Storage) -> Storage:
        return storages.setdefault(inner, Storage(inner.bytes, (call, *inner.made), inner.name))

    def tensor(inner: TensorValue) -> TensorValue:
        found = values.get(inner)
        return found if isinstance(found, TensorValue) else TensorValue(inner.meta, storage(inner.storage))

    def outward(inner: Value) -> Value:
        if inner not in values:
            match inner:
                case TensorValue():
                    values[inner] = tensor(inner)
                case Future(start, operand, result, waited):
                    place = (call, *waited) if waited else ()
                    values[inner] = Future((call, *start), tensor(operand), tensor(result), place)
                case Opaque():
                    return inner
        return values[inner]

    return [outward(value) for value in summary.results]
