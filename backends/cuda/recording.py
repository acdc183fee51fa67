"""The recording device: no device at all, but a model of torch's caching allocator, so that memory has addresses.

Source of the rules: PyTorch, "CUDA semantics", memory management and CUDA graphs. A pool for each stream, and while a
graph is captured another one for each stream, which all graphs of the program share. Sizes are multiples of 512 bytes.
A freed block goes to the next allocation of its stream that fits, the smallest that does.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection

from ...runtime.program.program import Program
from .issue import issue
from .logging_device import LoggingDevice
from .planning import steps_of
from .steps import Block, Step
from .stream_log import Entry

_GRAIN = 512
_POOL = 1 << 48
"""Between the beginnings of pools: more than any has."""


class AllocatorModel:
    """Gives blocks addresses as the caching allocator does, and does nothing else."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, bool], _Pool] = {}
        self._held: dict[int, tuple[_Pool, int, int]] = {}
        self._capturing = False

    def address(self, block: Block) -> int:
        """See `Addressed`. Inputs lie in memory of the caller's, a pool of their own."""
        if block.number not in self._held:
            self._take(block)
        return self._held[block.number][1]

    def launch(self, step: Step) -> None:
        """See `Device`."""
        for block in step.made:
            if block.number not in self._held:
                self._take(block)

    def record(self, stream: str, event: int) -> None:
        """See `Device`."""

    def wait(self, stream: str, event: int) -> None:
        """See `Device`."""

    def free(self, block: Block) -> None:
        """See `Device`."""
        pool, address, nbytes = self._held.pop(block.number)
        insort(pool.free, (nbytes, address))

    def begin_capture(self, stream: str) -> None:
        """See `Device`."""
        self._capturing = True

    def end_capture(self, stream: str) -> None:
        """See `Device`."""
        self._capturing = False

    def _take(self, block: Block) -> None:
        place = ("static", False) if block.static else (block.stream, self._capturing)
        pool = self._pools.setdefault(place, _Pool(_POOL * (1 + len(self._pools))))
        nbytes = max(1, -(-block.nbytes // _GRAIN)) * _GRAIN
        self._held[block.number] = (pool, *pool.take(nbytes))


class _Pool:
    """Memory of a stream, from `end` on not yet used."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.free: list[tuple[int, int]] = []
        """(bytes, address), sorted."""

    def take(self, nbytes: int) -> tuple[int, int]:
        """(address, bytes) of the smallest free piece that fits, or of new memory."""
        index = bisect_left(self.free, (nbytes, 0))
        if index < len(self.free):
            size, address = self.free.pop(index)
            if size > nbytes:
                insort(self.free, (size - nbytes, address + nbytes))
            return address, nbytes
        self.end += nbytes
        return self.end - nbytes, nbytes


def recorded(program: Program, rank: int, *, kernels: Collection[str] = (), capture: bool = False) -> list[Entry]:
    """The log of one training step of a rank, or of one forward: what the issuing code would give a GPU.

    Kernels run in place of the functions in `kernels`: each call is one piece of work.
    """
    planned = steps_of(program, rank, kernels=kernels, capture=capture)
    device = LoggingDevice(AllocatorModel(), program, rank)
    for part in (planned.forward, planned.backward):
        device.given(part.taken)
        issue(part.steps, device, capture=capture)
    return device.log
