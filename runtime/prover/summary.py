"""The effects of a function on its caller: the collectives it starts, the memory it needs, the futures it waits on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..implementations.binding import Binding
from .pieces import Pieces
from .values import Future, Opaque, Path, Refuted, Storage, TensorValue, Value

Signature = tuple[tuple[object, ...], ...]
"""The properties of arguments that a summary depends on: shapes, strides, dtypes, shared and retained memory."""


@dataclass(frozen=True, eq=False)
class Summary:
    """The summary of one function for one signature of arguments. Its paths begin at the function."""

    arguments: tuple[Value, ...]
    results: tuple[Value, ...]
    peak_bytes: int
    """The most that is live above what is live at its inside; its arguments count as live there."""
    peak_at: Path
    events: Pieces
    waited: tuple[tuple[Future, Path], ...] = ()
    """The futures among its arguments that it waits on, and the path of each wait."""
    overwritten: tuple[tuple[Storage, Path], ...] = ()
    """The memory of its arguments that takes a new value, and the path of the instruction that writes it."""

    @property
    def name(self) -> str:
        """The function."""
        return self.events.name


@dataclass
class CalleeArguments:
    """Arguments in the callee's terms: copies on fresh storages, and their signature."""

    values: list[Value] = field(default_factory=list)
    retained: set[Storage] = field(default_factory=set)
    """The storages of arguments that a caller keeps during the call."""
    signature: list[tuple[object, ...]] = field(default_factory=list)


def callee_arguments(values: Sequence[Value], retained: set[Storage]) -> CalleeArguments:
    """The arguments of a call in the callee's terms; `retained` are the storages that the caller keeps meanwhile."""
    inside = CalleeArguments()
    own: dict[Storage, Storage] = {}
    numbers: dict[Storage, int] = {}

    def storage(outer: Storage) -> Storage:
        if outer not in own:
            own[outer] = Storage(outer.bytes, name=outer.name)
            numbers[outer] = len(numbers)
            if outer in retained:
                inside.retained.add(own[outer])
        return own[outer]

    def described(value: TensorValue) -> tuple[object, ...]:
        inner = storage(value.storage)
        return (value.meta, numbers[value.storage], inner.bytes, inner in inside.retained)

    for value in values:
        match value:
            case TensorValue(meta, outer):
                inside.values.append(TensorValue(meta, storage(outer)))
                inside.signature.append(described(value))
            case Future(start, operand, result, has_event, waited):
                reads = TensorValue(operand.meta, storage(operand.storage))
                fills = TensorValue(result.meta, storage(result.storage))
                bucket = tuple(storage(outer) for outer in value.bucket)
                inside.values.append(Future(start, reads, fills, has_event, waited, True, bucket))
                inside.signature.append((*described(operand), *described(result), has_event, waited))
                inside.signature += [(numbers[outer], outer.bytes, outer in retained) for outer in value.bucket]
            case Opaque():
                inside.values.append(value)
                inside.signature.append((repr(value.value),))
    return inside


def storage_outside(summary: Summary, operands: Sequence[Value], inner: Storage) -> Storage:
    """The caller's storage that a function knows as `inner`, one of its arguments'."""
    pairs = zip(summary.arguments, operands, strict=True)
    return next(
        outer for argument, operand in pairs
        for own, outer in zip(argument.storages, operand.storages, strict=True) if own is inner
    )  # fmt: skip


def caller_results(summary: Summary, operands: Sequence[Value], call: tuple[str, int]) -> list[Value]:
    """The results of a call in the caller's terms; values that the callee made get fresh storages."""
    values: dict[Value, Value] = dict(zip(summary.arguments, operands, strict=True))
    storages: dict[Storage, Storage] = {}
    for inner, outer in values.items():
        storages.update(zip(inner.storages, outer.storages, strict=True))

    def storage(inner: Storage) -> Storage:
        return storages.setdefault(inner, Storage(inner.bytes, (call, *inner.creator), inner.name))

    def tensor(inner: TensorValue) -> TensorValue:
        known = values.get(inner)
        return known if isinstance(known, TensorValue) else TensorValue(inner.meta, storage(inner.storage))

    def outward(inner: Value) -> Value:
        if inner not in values:
            match inner:
                case TensorValue():
                    values[inner] = tensor(inner)
                case Future(start, operand, result, has_event, waited):
                    place = (call, *waited) if waited else ()
                    bucket = tuple(storage(each) for each in inner.bucket)
                    values[inner] = Future(
                        (call, *start), tensor(operand), tensor(result), has_event, place, bucket=bucket
                    )
                case Opaque():
                    return inner
        return values[inner]

    return [outward(value) for value in summary.results]


def with_kernel(summary: Summary, binding: Binding, target: str) -> Summary:
    """The summary of a function with a kind, given what runs for it.

    The body's peak holds unless a kernel states its workspace. Raises Refuted where a result lies in the memory of an
    argument or of another result: a kernel's never does.
    """
    taken: set[Storage] = {storage for value in summary.arguments for storage in value.storages}
    made = 0
    for value in summary.results:
        for storage in value.storages:
            if storage in taken:
                raise Refuted(
                    "E0732",
                    f'a result of "{summary.name}" lies in the memory of an argument or of another result',
                    storage.creator or ((summary.name, 0),),
                    help="compile the program again",
                )
            taken.add(storage)
            made += storage.bytes
    workspace = binding.workspace(target)
    if workspace is None:
        return summary
    return replace(summary, peak_bytes=made + workspace, peak_at=())
