"""Names the rank and the instruction when work on a device does not end: a GPU itself never says."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...runtime.errors import CollectiveError, instruction_name
from .steps import Step


class Ended(Protocol):
    """An event behind a piece of work, such as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether the work has ended; never waits for it."""
        ...


@dataclass(frozen=True)
class _Watched:
    step: Step
    event: Ended
    since: float


class StreamWatchdog:
    """Watches the work of a rank, each stream's in order; `stop` is called once, with the error, when some is late."""

    def __init__(
        self,
        rank: int,
        timeout_s: float,
        stop: Callable[[CollectiveError], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._timeout_s = timeout_s
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._by_stream: dict[str, deque[_Watched]] = {}
        self._closed = threading.Event()

    def watch(self, step: Step, event: Ended) -> None:
        """Watch work that was just issued, with an event behind it."""
        with self._lock:
            self._by_stream.setdefault(step.stream, deque()).append(_Watched(step, event, self._clock()))

    def look(self) -> CollectiveError | None:
        """Forget what has ended; the error for the first work that is late, communication before what waits for it."""
        with self._lock:
            heads = [head for queue in self._by_stream.values() if (head := _first_running(queue)) is not None]
        late = [head for head in heads if self._clock() - head.since > self._timeout_s]
        if not late:
            return None
        head = min(late, key=lambda each: (not _communicates(each.step), each.since))
        others = ", ".join(sorted(each.step.stream for each in heads if each is not head))
        assert head.step.instruction is not None
        function, index = head.step.path[-1]
        return CollectiveError(
            "E0322",
            f"rank {self._rank}: {instruction_name(head.step.instruction.op, index, function)} on the stream "
            f'"{head.step.stream}" has not ended after {self._timeout_s:g} s'
            + (f"; the streams {others} wait, too" if others else ""),
            help="see what the other ranks say: the one that names other work, or none, is the one to look at",
        )

    def run(self, interval_s: float = 1.0) -> None:
        """Look again and again, until something is late or `close` is called: for a thread of its own."""
        while not self._closed.wait(interval_s):
            error = self.look()
            if error is not None:
                self._stop(error)
                return

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()


def _first_running(queue: deque[_Watched]) -> _Watched | None:
    while queue and queue[0].event.query():
        queue.popleft()
    return queue[0] if queue else None


def _communicates(step: Step) -> bool:
    return step.instruction is not None and step.instruction.op.startswith("comm.")
