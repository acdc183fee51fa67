"""What the interpreter refuses or finds: one class for what cannot be run or is wrong, one for ranks that hang."""

from __future__ import annotations

from dataclasses import dataclass

from ...diagnostics import StrettoError
from ..locations import Origin

INPUTS = "E0651"
"""Another number of inputs, or another shape or dtype, than `main` takes."""
NO_MEANING = "E0652"
"""An operation that has no meaning at this level, or that draws random numbers."""
FAILED = "E0653"
"""An operation failed."""
WRONG_TYPE = "E0654"
"""An operation gave another shape or dtype than its type says."""
MEMORY = "E0655"
"""Running would take more memory than the cap."""
MISMATCH = "E0656"
"""Ranks meet in a collective and differ in what they want of it."""
DEADLOCK = "E0657"
"""Ranks wait for each other for ever."""
FUTURE = "E0658"
"""A future was waited on twice, or never."""
REPLICAS = "E0659"
"""Ranks that should hold the same of a result differ."""
UNLIKE = "E0660"
"""Modules that should go together take or give different tensors, or have different meshes."""
NO_RANGE = "E0661"
"""Nothing says which values an integer input may take."""
NOT_TAKEN = "E0663"
"""A tensor was sent, and nothing received it."""


_SAME_ORDER = "let every rank of a group start the same collectives in the same order"


class InterpreterError(StrettoError):
    """A module, or an input of it, that cannot be run; or a fault that running it found."""


@dataclass(frozen=True)
class Stuck:
    """A rank that will wait for ever (or that met others with a different wish): where, and for whom."""

    rank: int
    op: str
    origin: Origin
    waits_for: tuple[int, ...] = ()
    """Ranks that have not come."""

    def __str__(self) -> str:
        text = f'rank {self.rank} is in "{self.op}" ({self.origin})'
        return text + (f", waiting for {_ranks(self.waits_for)}" if self.waits_for else "")


class DeadlockError(InterpreterError):
    """Collectives, sends or receives that do not fit together; `stuck` has the place of each rank that takes part."""

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
