"""The order prover: proves that a program has no deadlock, no data race and no lost future, and fits into memory.

It reads the program, so that it proves what runs. It needs no compiler and no devices: shapes come from meta tensors,
or from what the program states.
Its work grows with distinct ranks and distinct functions, not with ranks and layers. Start reading at `prove.py`, then
`frame.py` (one function), `order.py` (the collectives of a group), `deadlock.py` (all groups together). Not here:
running a program, and checking its numbers (`checks/`).
"""

from .analysis import with_derived_types
from .prove import RankClass, prove, prove_ranks
from .queues import Backend
from .types import Types
from .verdict import Counterexample, PeakMemory, Place, Verdict

__all__ = [
    "Backend",
    "Counterexample",
    "PeakMemory",
    "Place",
    "RankClass",
    "Types",
    "Verdict",
    "prove",
    "prove_ranks",
    "with_derived_types",
]
