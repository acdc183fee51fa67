"""The seam between a rank's program and its peers: collectives and messages, started and waited on separately.

`axes` name the mesh axes of the group; its members are ordered by their row-major coordinate over `axes` as listed.
Every member of a group calls the same collectives in the same order. Tensors given to a `start` are not changed by
anyone until the handle was waited on; the tensor that `wait` returns may be shared between ranks of one process, so
nobody writes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Handle(Protocol):
    """A collective under way."""

    def wait(self) -> Tensor:
        """The result; blocks until every member has started the same collective. Called once."""
        ...


class Communicator(Protocol):
    """One rank's way to its peers; `where` names the instruction, for errors."""

    @property
    def rank(self) -> int:
        """This rank's number, row-major over the mesh axes in declared order."""
        ...

    def coordinate(self, axes: Sequence[str]) -> int:
        """This rank's row-major position in its group over `axes`."""
        ...

    def size(self, axes: Sequence[str]) -> int:
        """How many ranks the group over `axes` has."""
        ...

    def all_reduce_start(self, tensor: Tensor, axes: Sequence[str], reduce: str, where: str = "") -> Handle:
        """The elementwise `reduce` ("sum", "max", "min") over the group."""
        ...

    def all_gather_start(self, tensor: Tensor, axes: Sequence[str], dim: int, where: str = "") -> Handle:
        """The members' tensors, concatenated along `dim` in coordinate order."""
        ...

    def reduce_scatter_start(
        self, tensor: Tensor, axes: Sequence[str], dim: int, reduce: str, where: str = ""
    ) -> Handle:
        """This rank's chunk along `dim` (whose extent the group divides) of the elementwise `reduce`."""
        ...

    def all_to_all_start(
        self, tensor: Tensor, axes: Sequence[str], split_dim: int, concat_dim: int, where: str = ""
    ) -> Handle:
        """Chunk i along `split_dim` goes to member i; what arrives is concatenated along `concat_dim`."""
        ...

    def send(self, tensor: Tensor, axis: str, peer: int, where: str = "") -> None:
        """Give `tensor` to the rank at coordinate `peer` on `axis`, which else stands where this one does.

        Never waits for it. A rank receives what another sent to it in the order of the sends.
        """
        ...

    def receive_start(self, axis: str, peer: int, size: Sequence[int], dtype: torch.dtype, where: str = "") -> Handle:
        """The next tensor from the rank at coordinate `peer` on `axis`, which must be of this shape and dtype."""
        ...

    def close(self) -> None:
        """Give back what the communicator holds; nothing may be called afterwards."""
        ...
