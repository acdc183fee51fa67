"""Abstract values of slots: a tensor without its numbers, or the future of a collective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch

Path = tuple[tuple[str, int], ...]
"""The path to an instruction: (function, index) pairs, first the calls that lead to it."""


@dataclass(frozen=True)
class Meta:
    """Shape, strides (in elements) and dtype of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def contiguous(shape: tuple[int, ...], dtype: torch.dtype) -> Meta:
        """A row-major tensor.

        >>> Meta.contiguous((2, 3), torch.float32).stride
        (3, 1)
        """
        stride: list[int] = []
        step = 1
        for extent in reversed(shape):
            stride.append(step)
            step *= max(1, extent)
        return Meta(shape, tuple(reversed(stride)), dtype)

    @property
    def bytes(self) -> int:
        """The bytes of its elements, without gaps."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(eq=False)
class Storage:
    """Memory that one or more tensors (a tensor and its views) share."""

    bytes: int
    creator: Path = ()
    """The instruction that made it; empty for a function's arguments."""
    name: str = ""
    """The input that it belongs to, if any."""


@dataclass(eq=False)
class TensorValue:
    """One tensor; two values are the same only when they are one object."""

    meta: Meta
    storage: Storage

    @property
    def storages(self) -> tuple[Storage, ...]:
        """The memory that a reference to it keeps alive."""
        return (self.storage,)


@dataclass(eq=False)
class Future:
    """A collective or receive under way; done once `waited`, the path of its wait, is set."""

    start: Path
    operand: TensorValue
    result: TensorValue
    has_event: bool = True
    """Whether other ranks take part, so that its start and its wait are events."""
    waited: Path = ()
    is_argument: bool = False
    """Whether it is an argument of the function, so that the caller must wait on it."""
    bucket: tuple[Storage, ...] = ()
    """Of a collective of several tensors: the memory of all, which each of its futures keeps."""

    @property
    def storages(self) -> tuple[Storage, ...]:
        """The memory of operand and result; the result's counts from the start."""
        return (self.operand.storage, self.result.storage, *self.bucket)


@dataclass(eq=False)
class Opaque:
    """A value that is not a tensor: None or a number that an op returns beside its tensors."""

    value: object = None
    storages: tuple[Storage, ...] = field(default=(), init=False)


Value = TensorValue | Future | Opaque


def futures_of(pairs: Iterable[tuple[Value, Value]]) -> tuple[tuple[Future, Future], ...]:
    """The pairs of futures in which other ranks take part."""
    futures = ((a, b) for a, b in pairs if isinstance(a, Future) and isinstance(b, Future))
    return tuple((a, b) for a, b in futures if a.has_event)


def fresh(meta: Meta, path: Path) -> TensorValue:
    """A tensor in memory of its own, which the instruction at `path` makes."""
    return TensorValue(meta, Storage(meta.bytes, path))


def creators(value: Value) -> tuple[Path, ...]:
    """The instruction that made a value's memory."""
    return tuple(storage.creator for storage in value.storages[:1])


class Refuted(Exception):
    """A failed proof: what is wrong, and the instructions that show it, the faulty one first."""

    def __init__(self, code: str, message: str, *paths: Path, help: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.paths = tuple(path for path in paths if path)
        self.help = help


class OldValues:
    """Values of states whose memory took a new value (`into`): nothing may read them."""

    def __init__(self) -> None:
        self._written: dict[Storage, Path] = {}
        self._old: dict[Value, Path] = {}
        self._inside: dict[Storage, frozenset[Storage]] = {}
        """By memory: what it may be a part of."""

    def add(
        self, storage: Storage, values: Iterable[Value], reading: Mapping[Value, Sequence[Future]], path: Path
    ) -> None:
        """The instruction at `path` writes into a memory: all `values` in it are old.

        Raises Refuted where a collective of `reading`, by its operand, has not ended.
        """
        self._written[storage] = path
        for operand, futures in reading.items():
            pending = [future for future in futures if not future.waited]
            if pending and storage in operand.storages:
                raise Refuted("E0709", "a state is overwritten while a collective reads it", path, pending[0].start)
        old = (
            each for each in values for own in each.storages if own is storage or storage in self._inside.get(own, ())
        )
        self._old.update(dict.fromkeys(old, path))

    def refuse_all(self, values: Mapping[int, Value], path: Path) -> None:
        """Raise Refuted where a value, by its slot, is an old one."""
        for slot, value in values.items():
            if value in self._old:
                message = f"slot {slot} is read after its memory took a new value of the state"
                raise Refuted("E0731", message, path, self._old[value], help="read it before, or leave `into` out")

    def may_lie_in(self, results: Iterable[Value], operands: Iterable[Value]) -> None:
        """Results of own ops and of calls may be views of operands, though they count as memory of their own."""
        memory = {storage for value in operands for storage in value.storages}
        inside = frozenset(memory.union(*(self._inside.get(storage, ()) for storage in memory)))
        for storage in (storage for value in results for storage in value.storages):
            self._inside[storage] = self._inside.get(storage, frozenset()) | inside - {storage}

    def in_memory_of(self, arguments: Iterable[Value]) -> tuple[tuple[Storage, Path], ...]:
        """The memory of these that took a new value, and where."""
        given = {storage for value in arguments for storage in value.storages}
        return tuple(pair for pair in self._written.items() if pair[0] in given)
