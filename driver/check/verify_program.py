"""`stretto verify DIR`: the order proof of a program, for all ranks of its mesh; no compiler, no devices needed."""

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
    """What was proved, of a mesh of how many ranks, and in how many seconds."""

    verdict: Verdict
    ranks: int
    seconds: float

    def to_json(self) -> Mapping[str, Json]:
        return {**self.verdict.to_json(), "ranks": self.ranks, "seconds": self.seconds}


def verify_program(folder: str, memory_cap_bytes: int | None) -> ProgramVerdict:
    """Prove the program in a folder; the cap is for each rank. Errors: ProgramError E0301 to E0306, E0714."""
    program = Program.load(folder)
    start = time.perf_counter()
    verdict = prove(program, memory_cap_bytes=memory_cap_bytes)
    return ProgramVerdict(verdict, program.mesh.ranks, time.perf_counter() - start)


def show_verdict(proved: ProgramVerdict) -> None:
    """Print the figures of a safe program, or the counterexample."""
    say(proved.verdict.render())
