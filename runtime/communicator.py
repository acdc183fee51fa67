"""The interface between a rank's program and other ranks: collectives and messages, each with a start and a wait.

`axes` are the mesh axes of the group. Its members are ordered by their row-major coordinate over `axes` as listed.
All members of a group call the same collectives in the same order. A tensor passed to a start must not be written to
until the wait. Ranks of one process may share the tensor that `wait` returns, so it must not be written to either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Handle(Protocol):
    """A collective or receive that was started."""

    def wait(self) -> Tensor:
        """The result. Blocks until all members have started the collective; called once."""
        ...


class Communicator(Protocol):
    """The collectives and messages of one rank. `where` names the instruction in errors."""

    @property
    def rank(self) -> int:
        """This rank's number, row-major over the mesh axes in declared order."""
        ...

    def coordinate(self, axes: Sequence[str]) -> int:
        """This rank's row-major position in its group over `axes`."""
        ...

    def size(self, axes: Sequence[str]) -> int:
        """The number of ranks in the group over `axes`."""
        ...

    def all_reduce_start(self, tensor: Tensor, axes: Sequence[str], reduce: str, where: str = "") -> Handle:
        """The elementwise reduction ("sum", "max" or "min") over the group."""
        ...

    def all_gather_start(self, tensor: Tensor, axes: Sequence[str], dim: int, where: str = "") -> Handle:
        """The members' tensors, concatenated along `dim` in coordinate order."""
        ...

    def reduce_scatter_start(
        self, tensor: Tensor, axes: Sequence[str], dim: int, reduce: str, where: str = ""
    ) -> Handle:
        """This rank's chunk along `dim` of the elementwise reduction; the group's size divides the dim's extent."""
        ...

    def all_to_all_start(
        self, tensor: Tensor, axes: Sequence[str], split_dim: int, concat_dim: int, where: str = ""
    ) -> Handle:
        """Send chunk i along `split_dim` to member i; the result is the received chunks, joined along `concat_dim`."""
        ...

    def permute_start(self, tensor: Tensor, axes: Sequence[str], shift: int, where: str = "") -> Handle:
        """The tensor of the member at this rank's coordinate minus `shift`, modulo the group's size."""
        ...

    def all_to_all_rows_start(
        self,
        tensor: Tensor,
        axes: Sequence[str],
        bound: int,
        send_counts: Tensor,
        receive_counts: Tensor,
        where: str = "",
    ) -> Handle:
        """Send the first rows of `tensor`, `send_counts[i]` to member i; the result holds the rows that come, in order.

        `receive_counts[i]` rows come from member i. The result has `bound` rows; those past the counts are undefined.
        Raises RunError E0338 for counts that exceed the rows or the bound.
        """
        ...

    def all_reduce_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], reduce: str, where: str = ""
    ) -> Sequence[Handle]:
        """`all_reduce_start` for a bucket of tensors of one dtype, in one call; a handle for each."""
        ...

    def all_gather_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], dims: Sequence[int], where: str = ""
    ) -> Sequence[Handle]:
        """`all_gather_start` for a bucket, each tensor along its own dim."""
        ...

    def reduce_scatter_coalesced_start(
        self, tensors: Sequence[Tensor], axes: Sequence[str], dims: Sequence[int], reduce: str, where: str = ""
    ) -> Sequence[Handle]:
        """`reduce_scatter_start` for a bucket, each tensor along its own dim."""
        ...

    def send(self, tensor: Tensor, axis: str, peer: int, where: str = "") -> None:
        """Send `tensor` to the rank at coordinate `peer` on `axis` whose other coordinates are this rank's.

        Never blocks. Messages between two ranks are received in the order of their sends.
        """
        ...

    def receive_start(self, axis: str, peer: int, size: Sequence[int], dtype: torch.dtype, where: str = "") -> Handle:
        """Start to receive the next message from the rank at coordinate `peer` on `axis`, of this shape and dtype."""
        ...

    def close(self) -> None:
        """Release the communicator's resources; no method may be called afterwards."""
        ...
