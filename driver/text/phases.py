"""What a long first call does at present: a line on stderr that a terminal or a notebook replaces, or a log's lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TextIO

from ...diagnostics import printable
from .console import present_work


class Display(Enum):
    """Where the phases are shown: seconds before the first line, and between two."""

    REPLACED = (1.0, 0.5)
    """A terminal or a notebook: one line, which is removed at the end."""
    LOG = (10.0, 30.0)
    """A file or a pipe: a line now and then, and none for a call that is soon done."""
    NONE = (0.0, 0.0)
    """A command shows its own progress, or another process shows this one's."""


def display_of(stream: TextIO | None) -> Display:
    """The display that a stream can have."""
    if stream is None or present_work():
        return Display.NONE
    return Display.REPLACED if stream.isatty() or _is_notebook() else Display.LOG


@contextmanager
def phases_shown(what: str, display: Display | None = None) -> Iterator[Callable[[str], None]]:
    """Inside, the phases that are named to the yielded function are shown on stderr as phases of `what`."""
    display = display_of(sys.stderr) if display is None else display
    shown = _Shown(what, display)
    if display is Display.NONE:
        yield shown.begin
        return
    thread = threading.Thread(target=shown.run, name="stretto-phases", daemon=True)
    thread.start()
    try:
        yield shown.begin
    finally:
        shown.end.set()
        thread.join()


class _Shown:
    def __init__(self, what: str, display: Display) -> None:
        self.end = threading.Event()
        self._what = what
        self._display = display
        self._phase = ""
        self._start = time.monotonic()
        self._width = 0

    def begin(self, phase: str) -> None:
        self._phase = phase

    def run(self) -> None:
        wait_s, period_s = self._display.value
        while not self.end.wait(wait_s):
            self._write()
            wait_s = period_s
        if self._width:
            _put("\r" + " " * self._width + "\r")

    def _write(self) -> None:
        seconds = time.monotonic() - self._start
        line = printable(f"stretto: {self._what}: {self._phase}, {seconds:.0f} s")
        if self._display is Display.LOG:
            _put(line + "\n")
            return
        _put("\r" + line.ljust(self._width))
        self._width = max(self._width, len(line))


def _put(text: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # closed or full: a compile does not fail for it
        sys.stderr.write(text)
        sys.stderr.flush()


def _is_notebook() -> bool:
    """Whether this is the kernel of a notebook, whose output is no terminal and knows carriage returns."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
