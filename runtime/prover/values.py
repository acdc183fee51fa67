"""Abstract values of slots: a tensor without its numbers, or the future of a collective."""

from __future__ import annotations

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


class Refuted(Exception):
    """A failed proof: what is wrong, and the instructions that show it, the faulty one first."""

    def __init__(self, code: str, message: str, *paths: Path, help: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.paths = tuple(path for path in paths if path)
        self.help = help
