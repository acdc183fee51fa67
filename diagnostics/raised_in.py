"""Which part of Stretto raised an exception that is no user error."""

from __future__ import annotations

import traceback
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PARTS = {
    "frontend": "capture",
    "passes": "a pass",
    "backends": "lowering",
    "runtime": "the runtime",
    "driver/model": "stretto.compile",
    "driver/state": "reading or writing weights",
    "ir": "the IR",
}
"""By folder, what stands there; the first that a path begins with counts."""
_OTHERS = ("tests/", "examples/", "benchmarks/")
"""What lies beside the source in a checkout, and is a user's code."""


def raised_in(error: BaseException) -> str:
    """The part, file and function of the innermost frame in Stretto's source; empty if the exception has none.

    Of an exception that was raised from another one, the other counts.

    Example: "capture (frontend/capture/joint.py, joint_graph)".
    """
    if error.__cause__ is not None and (place := raised_in(error.__cause__)):
        return place
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT):
            file = path.relative_to(_ROOT).as_posix()
            if file.startswith(_OTHERS):
                continue
            part = next((part for folder, part in _PARTS.items() if file.startswith(f"{folder}/")), "")
            place = f"{file}, {frame.name}"
            return f"{part} ({place})" if part else place
    return ""


def raised_text(error: BaseException) -> str:
    """One line: the exception, and which part of Stretto raised it."""
    reason = (str(error).strip().splitlines() or [""])[0]
    text = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    place = raised_in(error)
    return f"{text}, raised by {place}" if place else text
