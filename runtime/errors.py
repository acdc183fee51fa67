"""What can be wrong with a program or with running it, as errors that a user sees."""

from __future__ import annotations

from ..diagnostics import Span, StrettoError


class ProgramError(StrettoError):
    """A program folder that cannot be read, written or trusted (E0301 to E0309)."""


class RunError(StrettoError):
    """A program that cannot be run on what it was given, or not to its end (E0310 and up)."""


class CollectiveError(RunError):
    """Ranks do not meet in a collective: they differ, one is missing, or one has failed."""


class PeerFailed(CollectiveError):
    """This rank stopped because another one failed; the other one's error is the one to read."""


def instruction_name(op: str, index: int, function: str) -> str:
    """How errors name an instruction.

    >>> instruction_name("aten.mm.default", 3, "main")
    'instruction 3 (aten.mm.default) of "main"'
    """
    return f'instruction {index} ({op}) of "{function}"'


def place_of(file: str, line: int) -> Span | None:
    """The source place of an instruction, or None when it has none."""
    return Span(file, line) if file else None
