"""Errors of programs and of running them, and the words that their messages share."""

from __future__ import annotations

from collections.abc import Sequence

from ..diagnostics import Span, StrettoError


class ProgramError(StrettoError):
    """A program folder that cannot be read, written or trusted (E0301 to E0309)."""


class RunError(StrettoError):
    """A program that cannot run on its arguments, or that failed while it ran (E0310 and up)."""


class RowCountError(RunError):
    """Counts of rows that an exchange cannot carry out (E0338)."""


class RowsAboveBound(RowCountError):
    """More rows come to a rank than the plan's bound has room for: the one such error that is none of the program."""


class CollectiveError(RunError):
    """A collective or message that cannot complete: ranks differ in it, one is missing, or one has failed."""


class PeerFailed(CollectiveError):
    """This rank stopped because another one failed; the other rank's error names the cause."""


def instruction_name(op: str, index: int, function: str) -> str:
    """The text by which errors name an instruction.

    >>> instruction_name("aten.mm.default", 3, "main")
    'instruction 3 (aten.mm.default) of "main"'
    """
    return f'instruction {index} ({op}) of "{function}"'


def source_span(file: str, line: int) -> Span | None:
    """The source span of an instruction, or None where it has none."""
    return Span(file, line) if file else None


def rank_list(ranks: Sequence[int]) -> str:
    """The text by which errors name ranks.

    >>> rank_list([1]), rank_list([1, 3])
    ('rank 1', 'ranks 1, 3')
    """
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(str(rank) for rank in ranks)
