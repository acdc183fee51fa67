"""Tensors from process to process: sends that nobody waits for until the step ends, receives that are waited on.

gloo cannot be asked whether a message has come, and a wait of its own that ends early closes all connections (torch
2.13). So a thread for each peer and direction waits without limit, and this process looks at what it says. Measured on
2 cores: no slower than waiting directly.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .watchdog import Watchdog

_FOR_EVER = timedelta(days=365)
_JOIN_S = 2.0
"""How long the end of a process waits for a thread."""


class Messages:
    """What this process sends and receives; FIFO for each pair of processes and direction."""

    def __init__(
        self, rank: int, device: torch.device, watchdog: Watchdog, groups: tuple[dist.ProcessGroup, dist.ProcessGroup]
    ) -> None:
        self._rank = rank
        self._device = device
        self._watchdog = watchdog
        self._groups = groups
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self._sent: deque[_Message] = deque()

    def send(self, tensor: Tensor, to: int, where: str) -> None:
        """Start to send; the tensor is kept until it has come, or `finish`."""
        while self._sent and self._sent[0].has_come:
            self._sent.popleft()
        whole = tensor.contiguous()
        work = dist.isend(whole, to, group=self._group(self._rank, to))
        self._sent.append(self._message(work, whole, self._rank, to, where))

    def receive(self, source: int, size: Sequence[int], dtype: torch.dtype, where: str) -> _Message:
        """Start to receive; what is waited on gives the tensor."""
        result = torch.empty(tuple(size), dtype=dtype, device=self._device)
        work = dist.irecv(result, source, group=self._group(source, self._rank))
        return self._message(work, result, source, self._rank, where)

    def finish(self) -> None:
        """Wait until everything that was sent is with its receiver; raises CollectiveError when that cannot be."""
        while self._sent:
            self._sent.popleft().wait()

    def forget(self) -> None:
        """Wait for nothing: the step has failed."""
        self._sent.clear()

    def close(self) -> None:
        """End the threads, and with them the connections where a message is under way; nothing may follow.

        Python cannot end while a thread waits inside gloo, which would bring the process down.
        """
        if any(lane.is_busy for lane in self._lanes.values()):
            with contextlib.suppress(RuntimeError):
                self._break()
        for lane in self._lanes.values():
            lane.end()
        self._lanes.clear()

    def _break(self) -> None:
        """Let gloo close the connections, which it does when a wait has ended early; raises what it then raises."""
        source = 1 if self._rank == 0 else 0
        work = dist.irecv(torch.empty(1), source, group=self._groups[0])
        if work is not None:
            work.wait(timedelta(milliseconds=1))

    def _group(self, source: int, destination: int) -> dist.ProcessGroup:
        """One for each direction: what goes up never stands in NCCL's queue behind what comes down."""
        return self._groups[0 if source < destination else 1]

    def _message(self, work: dist.Work | None, tensor: Tensor, source: int, destination: int, where: str) -> _Message:
        assert work is not None, "every process is a member of these groups"
        if self._device.type == "cuda":
            return _Message(self._watchdog, work, None, tensor, (source, destination), where)
        key = (source, destination)
        if not self._lanes:
            atexit.register(self.close)
        if key not in self._lanes:
            self._lanes[key] = _Lane(f"stretto-message-{source}-{destination}")
        return _Message(self._watchdog, work, self._lanes[key].follow(work), tensor, key, where)


class Ticket:
    """What a thread says of one message."""

    def __init__(self) -> None:
        self._under_way = threading.Lock()
        self._under_way.acquire()
        self.error: RuntimeError | None = None
        """Why it never came."""

    def ended(self, seconds: float) -> bool:
        """Whether the message has come, or failed, after at most so long."""
        if not self._under_way.acquire(timeout=seconds):
            return False
        self._under_way.release()
        return True

    def end(self, error: RuntimeError | None) -> None:
        """It has come, or failed."""
        self.error = error
        self._under_way.release()


class _Lane:
    """A thread that waits for one message after the other."""

    def __init__(self, name: str) -> None:
        self._ahead: queue.SimpleQueue[tuple[dist.Work, Ticket] | None] = queue.SimpleQueue()
        self._last: Ticket | None = None
        self._thread = threading.Thread(target=_follow, args=(self._ahead,), name=name, daemon=True)
        self._thread.start()

    def follow(self, work: dist.Work) -> Ticket:
        """Wait for `work` after all that came before."""
        self._last = Ticket()
        self._ahead.put((work, self._last))
        return self._last

    @property
    def is_busy(self) -> bool:
        """Whether a message is under way."""
        return self._last is not None and not self._last.ended(0.0)

    def end(self) -> None:
        """End the thread, which must not be busy any longer."""
        self._ahead.put(None)
        self._thread.join(_JOIN_S)


def _follow(ahead: queue.SimpleQueue[tuple[dist.Work, Ticket] | None]) -> None:
    while (item := ahead.get()) is not None:
        work, ticket = item
        try:
            work.wait(_FOR_EVER)
            ticket.end(None)
        except RuntimeError as error:
            ticket.end(error)
        del item, work, ticket


class _Message:
    """One message under way."""

    def __init__(
        self,
        watchdog: Watchdog,
        work: dist.Work,
        ticket: Ticket | None,
        tensor: Tensor,
        pair: tuple[int, int],
        where: str,
    ) -> None:
        self._watchdog = watchdog
        self._work = work
        self._ticket = ticket
        self._tensor = tensor
        self._pair = pair
        self._where = where

    @property
    def has_come(self) -> bool:
        """Whether it is known to have come, and nothing went wrong."""
        if self._ticket is None:
            return self._work.is_completed()
        return self._ticket.ended(0.0) and self._ticket.error is None

    def wait(self) -> Tensor:
        """The tensor, once it has come; raises CollectiveError when the peer is gone or does not come."""
        if self._ticket is None:
            self._work.wait()  # orders streams only; NCCL's own watchdog sees to the rest
        else:
            self._watchdog.wait_for_message(self._ticket, self._where, self._pair)
        return self._tensor
