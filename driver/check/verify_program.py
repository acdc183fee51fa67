"""`stretto verify DIR`: prove a program's order for all ranks of its mesh, and judge its values where they fit a cap.

The proof needs no compiler and no devices. Values need the compiler, which reads the program's module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from ...runtime.prover import Backend, Verdict, prove
from ..text.console import progress, say


class Values(Protocol):
    """The verdict on a program's values (`folder_values.py`, which needs the compiler)."""

    @property
    def judgement(self) -> str:
        """equal, differs or not judged."""

    @property
    def summary(self) -> str:
        """One line."""

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each result that differs."""

    def to_json(self) -> dict[str, Json]: ...


@dataclass(frozen=True)
class NoCompiler:
    """The values of a program where the compiler is not installed."""

    judgement: str = "not judged"
    summary: str = (
        'values: not judged (reading the program\'s module needs the compiler: pip install "stretto[compiler]")'
    )
    lines: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        return {"verdict": self.judgement, "reason": "the compiler is not installed"}


@dataclass(frozen=True)
class ProgramVerdict:
    """The verdicts on a program's order and values, the number of ranks, and the seconds that the proof took."""

    verdict: Verdict
    values: Values | None
    """None where the order is refuted: values were not looked at."""
    ranks: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the program is safe, and its values do not differ."""
        return self.verdict.safe and (self.values is None or self.values.judgement != "differs")

    @property
    def is_judged(self) -> bool:
        """Whether values were judged, or the order refuted."""
        return self.values is None or self.values.judgement != "not judged"

    def to_json(self) -> Mapping[str, Json]:
        values = {} if self.values is None else {"values": self.values.to_json()}
        return {**self.verdict.to_json(), **values, "ranks": self.ranks, "seconds": self.seconds}


def verify_program(
    folder: str, memory_cap_bytes: int | None, judge: Callable[[Program], Values], backend: Backend = Backend.NCCL
) -> ProgramVerdict:
    """Prove the program in a folder, then judge its values; the memory cap is per rank of the program.

    Errors: ProgramError E0301 to E0306, E0714.
    """
    with progress(3) as bar:
        bar.show("load", 0)
        program = Program.load(folder)
        bar.show("order", 1)
        start = time.perf_counter()
        verdict = prove(program, memory_cap_bytes=memory_cap_bytes, backend=backend)
        seconds = time.perf_counter() - start
        bar.show("values", 2)
        return ProgramVerdict(verdict, judge(program) if verdict.safe else None, program.mesh.ranks, seconds)


def show_verdict(proved: ProgramVerdict) -> None:
    """Print the figures of a safe program, or the counterexample; then the verdict on values."""
    say(proved.verdict.render())
    if proved.values is not None:
        say(proved.values.summary)
        for line in proved.values.lines:
            say(f"  {line}")
