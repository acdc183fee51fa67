"""What a slot holds, as far as the prover knows it: a tensor without its numbers, or the future of a collective."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

Path = tuple[tuple[str, int], ...]
"""An instruction: (function, index) pairs, the calls that lead to it first."""


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
        """What its elements take when nothing lies between them."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(eq=False)
class Storage:
    """Memory that one or more tensors (a tensor and its views) share."""

    bytes: int
    made: Path = ()
    """The instruction that made it; empty for what a function is given."""
    name: str = ""
    """The input that it belongs to, if any."""


@dataclass(eq=False)
class TensorValue:
    """One tensor; two values are the same only when they are one object."""

    meta: Meta
    storage: Storage

    @property
    def storages(self) -> tuple[Storage, ...]:
        """The memory that whoever holds it keeps."""
        return (self.storage,)


@dataclass(eq=False)
class Future:
    """A collective under way, or done once `waited` is set."""

    start: Path
    operand: TensorValue
    result: TensorValue
    waited: Path = ()
    given: bool = False
    """It came as an argument, so the caller answers for its wait."""

    @property
    def storages(self) -> tuple[Storage, ...]:
        """What the collective reads, and what it fills (counted from its start)."""
        return (self.operand.storage, self.result.storage)


@dataclass(eq=False)
class Opaque:
    """Something that is no tensor: None or a number that an op gives beside its tensors."""

    value: object = None
    storages: tuple[Storage, ...] = field(default=(), init=False)


Value = TensorValue | Future | Opaque


class Refuted(Exception):
    """A proof that failed: what is wrong, and the instructions that show it, the guilty one first."""

    def __init__(self, code: str, message: str, *paths: Path, help: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.paths = tuple(path for path in paths if path)
        self.help = help
