"""States of rank threads: a rank works on a view of the caller's tensor, or on a copy of its own that stays with it.

Of a state that several ranks have, one works on the caller's tensor, so that it is seen by the caller at any time. The
others keep copies: two ranks may not write to one memory. Copies are made anew where the caller changed the tensor.
Sessions on the same threads, such as those of prefill and decode, have one set of states.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from torch import Tensor

from ..program.program import Program
from ..program.records import Input, Output
from ..rank.shards import local_tensor, sharding_axes, windows
from ..rank.state_writes import is_same, settled

_Key = tuple[object, ...]
"""Name, shape, dtype and shards of a state: programs for other shapes have other states."""


class ResidentStates:
    """The states of all ranks of a session."""

    def __init__(self, program: Program, beside: ResidentStates | None = None) -> None:
        """`beside` are those of a session on the same threads: states with equal keys are the same."""
        self._mesh = program.mesh
        self._whole: dict[_Key, Tensor] = {}
        """The caller's tensors of the present step."""
        self._seen: dict[_Key, tuple[int, int]] = {} if beside is None else beside._seen
        """The memory and version of the caller's tensor when the last step ended."""
        self._local: dict[tuple[_Key, int], Tensor] = {} if beside is None else beside._local
        self._lock = Lock()
        self._copies = bool(program.results_of_kind("gradient"))
        self.copied_bytes = 0
        """Bytes that were copied between ranks' parts and new values."""

    def begin(self, states: Sequence[tuple[Input, Tensor]]) -> None:
        """Take the caller's tensors for a step; where one has changed, the ranks get their parts of it anew."""
        self._whole = {_key(record): tensor.detach() for record, tensor in states}
        for record, tensor in states:
            if self._seen.get(_key(record)) != _version(tensor):
                for rank in range(self._mesh.ranks):
                    self._local[_key(record), rank] = self._part(record, rank)

    def local(self, record: Input, rank: int) -> Tensor:
        """The part of a rank; in training a copy, since a backward may need the old value."""
        part = self._local[_key(record), rank]
        return part.clone() if self._copies else part

    def _part(self, record: Input, rank: int) -> Tensor:
        whole = self._whole[_key(record)]
        part = local_tensor(whole, record.shards, self._mesh, rank)
        if not _shares_memory(part, whole):
            self.copied_bytes += part.nbytes
        elif not self._is_primary(record, rank):
            part = part.clone()
            self.copied_bytes += part.nbytes
        return part

    def store(self, results: Sequence[tuple[Output, Tensor]], rank: int) -> None:
        """Keep a rank's new values. Called from its thread; copies nothing that was written in place."""
        parts = [self._local[_key(output), rank] for output, _ in results]
        values = settled(parts, [value for _, value in results])
        copied = 0
        for part, value, (output, _) in zip(parts, values, results, strict=True):
            whole = self._whole[_key(output)]
            if not is_same(value, part):
                part.copy_(value)
                copied += part.nbytes
            if self._is_primary(output, rank) and not _shares_memory(part, whole):
                for window, own in windows(whole, part, output.shards, self._mesh, rank):
                    window.copy_(own)
                copied += part.nbytes
        with self._lock:
            self.copied_bytes += copied

    def end(self) -> None:
        """The step has ended on all ranks."""
        self._seen.update({key: _version(tensor) for key, tensor in self._whole.items()})

    def _is_primary(self, record: Input | Output, rank: int) -> bool:
        return self._mesh.is_primary(rank, sharding_axes(record.shards), {})


def _key(record: Input | Output) -> _Key:
    return record.name, record.shape, record.dtype, record.shards


def _version(tensor: Tensor) -> tuple[int, int]:
    """The memory of a tensor, and torch's count of changes in place."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _shares_memory(part: Tensor, whole: Tensor) -> bool:
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
