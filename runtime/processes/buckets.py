"""Buckets: several tensors that one call of a collective moves, one behind the other in a flat tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from ..communicator import Handle


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of all tensors, one after the other: a copy."""
    with torch.no_grad():
        return torch.cat([tensor.flatten() for tensor in tensors])


def windows(joined: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The tensors of these shapes in (.., elements), each (.., *shape); views where `joined` is contiguous.

    >>> [part.tolist() for part in windows(torch.arange(6), [(2, 2), (2,)])]
    [[[0, 1], [2, 3]], [4, 5]]
    """
    sizes = [prod(shape) for shape in shapes]
    parts = torch.split_with_sizes(joined, sizes, -1)
    return [part.reshape(*joined.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)]


class Bucket:
    """A collective of several tensors under way; the first wait for one of them ends it."""

    def __init__(self, handle: Handle, parts: Callable[[Tensor], list[Tensor]]) -> None:
        self._handle = handle
        self._parts = parts
        self._results: list[Tensor] | None = None

    def handles(self, count: int) -> list[PartHandle]:
        """A handle for each tensor."""
        return [PartHandle(self, index) for index in range(count)]

    def result(self, index: int) -> Tensor:
        """The result for tensor `index`. Blocks until all members have started the collective."""
        if self._results is None:
            joined = self._handle.wait()
            with torch.no_grad():
                self._results = self._parts(joined)
        return self._results[index]


class PartHandle:
    """The handle for one tensor of a bucket."""

    def __init__(self, bucket: Bucket, index: int) -> None:
        self._bucket = bucket
        self._index = index

    def wait(self) -> Tensor:
        """This rank's result. Raises CollectiveError where a member is dead or late."""
        return self._bucket.result(self._index)
