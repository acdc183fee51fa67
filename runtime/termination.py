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


class Step:
    """A `with` block in which SIGTERM waits: the block's error comes first, and a good end is followed by the signal.

    Outside the block the signal does what it always does. Where the program has a handler of its own, nothing changes.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._timer: threading.Timer | None = None
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._told)

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if self._timer is not None and not self._depth:
            self._timer.cancel()
            self._timer = None
            if error is None:
                _end()

    def _told(self, number: int, frame: FrameType | None) -> None:
        if not self._depth:
            _end()
        elif self._timer is None:
            self._timer = threading.Timer(PATIENCE_S, os._exit, (128 + number,))
            self._timer.daemon = True
            self._timer.start()


def _end() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
