"""The order prover: is a program free of deadlock, of races and of lost futures, and does it fit into memory?

It reads the program, so that what is proved is what runs, and needs no compiler and no devices: shapes come from meta
tensors. Work grows with distinct ranks and distinct functions, not with ranks and layers. Start reading at `prove.py`;
then `frame.py` (one function), `order.py` (the collectives of a group), `deadlock.py` (all groups together). Running a
program, and whether its numbers are right (`check.py`), are not here.
"""

from .prove import RankClass, prove, prove_ranks
from .verdict import Counterexample, PeakMemory, Place, Verdict

__all__ = ["Counterexample", "PeakMemory", "Place", "RankClass", "Verdict", "prove", "prove_ranks"]
