"""On request, ranks are watched for tensors that they keep behind the instruction that frees them.

The prover's peak counts on these frees. The values of slots are local variables of the functions that `translate.py`
writes, so that the watch reads them there and shares nothing with the code that clears them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..program.program import Program

_SAMPLES = 32
"""In how many places of a function its variables are read; to read them takes as long as there are variables."""
_open: list[list[str]] = []
"""What the open contexts of all threads have found; programs run in other threads than callers."""


@contextmanager
def watch_frees() -> Iterator[list[str]]:
    """A context in which programs fill the list with a line for each function that keeps a freed tensor."""
    found: list[str] = []
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)


class FreesWatch:
    """Reads the slots of one rank in one forward or backward; called behind instructions, before they free theirs."""

    def __init__(self, program: Program, found: list[str]) -> None:
        self._functions = program.functions
        self._found = found

    def __call__(self, function: str, index: int, _op: str, *_results: object) -> None:
        """Add a line where the calling function has a value in a slot that an earlier instruction frees."""
        code = self._functions[function].code
        if index % max(1, len(code) // _SAMPLES):
            return
        values = sys._getframe(1).f_locals
        for earlier in range(index):
            kept = [slot for slot in code[earlier].free if values.get(f"v{slot}") is not None]
            if kept:
                op = code[earlier].op
                line = (
                    f"{function} keeps the tensor in slot {kept[0]} behind instruction {earlier} ({op}), which frees it"
                )
                if line not in self._found:
                    self._found.append(line)
                return


def open_watch(program: Program) -> FreesWatch | None:
    """A watch for the innermost open context; None where none is open."""
    return FreesWatch(program, _open[-1]) if _open else None
