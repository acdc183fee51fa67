"""Errors of the interpreter: modules that cannot run or are wrong, and deadlocks."""

from __future__ import annotations

from dataclasses import dataclass

from ...diagnostics import StrettoError
from ..locations import Origin

INPUTS = "E0651"
"""A wrong number of inputs, or a wrong shape or dtype."""
NO_MEANING = "E0652"
"""An operation that is not defined at this level, or a random one."""
FAILED = "E0653"
"""An operation failed."""
WRONG_TYPE = "E0654"
"""A result has another shape or dtype than its type."""
MEMORY = "E0655"
"""The run would need more memory than the cap."""
MISMATCH = "E0656"
"""Ranks start the same collective with different arguments."""
DEADLOCK = "E0657"
"""Ranks wait for each other for ever."""
FUTURE = "E0658"
"""A future was waited on twice, or never."""
REPLICAS = "E0659"
"""Replicas of a result differ."""
UNLIKE = "E0660"
"""Two modules have different arguments, results or meshes."""
NO_RANGE = "E0661"
"""An integer input of unknown range."""
NOT_TAKEN = "E0663"
"""A sent tensor is never received."""
SLOT = "E0664"
"""An instruction of a program reads or frees a slot that is not set."""


_SAME_ORDER = "let every rank of a group start the same collectives in the same order"


class InterpreterError(StrettoError):
    """A module or input that cannot run, or a fault that the run found."""


class RowsAboveBoundError(InterpreterError):
    """More rows come to a rank than an exchange has room for: the run stops, and no value is wrong."""


class RowsAboveBound(ValueError):
    """Raised where the rows are counted."""


@dataclass(frozen=True)
class Stuck:
    """A rank that takes part in a deadlock or mismatch: its operation, and the ranks it waits for."""

    rank: int
    op: str
    origin: Origin
    waits_for: tuple[int, ...] = ()
    """Ranks that have not arrived."""

    def __str__(self) -> str:
        text = f'rank {self.rank} is in "{self.op}" ({self.origin})'
        return text + (f", waiting for {_ranks(self.waits_for)}" if self.waits_for else "")


class DeadlockError(InterpreterError):
    """Mismatched collectives, sends or receives; `stuck` has the operation of each rank that takes part."""

    def __init__(
        self,
        code: str,
        message: str,
        stuck: tuple[Stuck, ...],
        *,
        finished: tuple[int, ...] = (),
        help: str = _SAME_ORDER,
    ) -> None:
        self.stuck = stuck
        self.finished = finished
        notes = [str(s) for s in stuck]
        if finished:
            notes.append(f"{_ranks(finished)} {'has' if len(finished) == 1 else 'have'} finished")
        super().__init__(
            code,
            message,
            notes=tuple((note, None) for note in notes),
            help=help,
        )


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
