"""`stretto verify DIR`: prove a program's order for all ranks of its mesh; needs no compiler and no devices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from ...runtime.prover import Verdict, prove
from ..text.console import say


@dataclass(frozen=True)
class ProgramVerdict:
    """The verdict of the order prover, the number of ranks, and the seconds that the proof took."""

    verdict: Verdict
    ranks: int
    seconds: float

    def to_json(self) -> Mapping[str, Json]:
        return {**self.verdict.to_json(), "ranks": self.ranks, "seconds": self.seconds}


def verify_program(folder: str, memory_cap_bytes: int | None) -> ProgramVerdict:
    """Prove the program in a folder; the memory cap is per rank. Errors: ProgramError E0301 to E0306, E0714."""
    program = Program.load(folder)
    start = time.perf_counter()
    verdict = prove(program, memory_cap_bytes=memory_cap_bytes)
    return ProgramVerdict(verdict, program.mesh.ranks, time.perf_counter() - start)


def show_verdict(proved: ProgramVerdict) -> None:
    """Print the figures of a safe program, or the counterexample."""
    say(proved.verdict.render())
