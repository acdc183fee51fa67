"""SIGTERM during a step: the process first reports what it waited for, then ends.

When one process dies, its launcher terminates the others at once. Without this they would end before they name it.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

STEP_GRACE_S = 10.0
"""Seconds that a step may continue after SIGTERM."""
BETWEEN_STEPS_GRACE_S = 3.0
"""Seconds after SIGTERM within which the next step may begin; its first collective then names the dead rank."""


class Step:
    """A context that defers SIGTERM: an error of the step is raised first; a step that succeeds then ends the process.

    Between two steps SIGTERM waits a short time for the next one. Where the process has a handler of its own, this
    changes nothing.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._timer: threading.Timer | None = None
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def __enter__(self) -> None:
        if self._timer is not None and not self._depth:
            self._wait(STEP_GRACE_S)
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._timer is not None and not self._depth:
            self._timer.cancel()
            self._timer = None
            if error is None:
                _end()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._timer is None:
            self._wait(STEP_GRACE_S if self._depth else BETWEEN_STEPS_GRACE_S)

    def _wait(self, seconds: float) -> None:
        """End the process after `seconds`, unless a step ends before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, os._exit, (128 + signal.SIGTERM,))
        self._timer.daemon = True
        self._timer.start()


def _end() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
