"""A process that is told to end (SIGTERM) in the middle of a step first says what it waited for.

When one process dies, its launcher ends the others at once; without this they would die before they can name it.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

PATIENCE_S = 10.0
"""How long a step may go on after SIGTERM."""
BETWEEN_S = 3.0
"""How long the next step may take to begin after SIGTERM: its first collective then names who is missing."""


class Step:
    """A `with` block in which SIGTERM waits: the block's error comes first, and a good end is followed by the signal.

    Between two blocks it waits a little for the next one. Where the program has a handler of its own, nothing changes.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._timer: threading.Timer | None = None
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._told)

    def __enter__(self) -> None:
        if self._timer is not None and not self._depth:
            self._wait(PATIENCE_S)
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if self._timer is not None and not self._depth:
            self._timer.cancel()
            self._timer = None
            if error is None:
                _end()

    def _told(self, number: int, frame: FrameType | None) -> None:
        if self._timer is None:
            self._wait(PATIENCE_S if self._depth else BETWEEN_S)

    def _wait(self, seconds: float) -> None:
        """End the process after so many seconds, unless a block ends before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, os._exit, (128 + signal.SIGTERM,))
        self._timer.daemon = True
        self._timer.start()


def _end() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
