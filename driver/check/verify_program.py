"""`stretto verify DIR`: prove a program's order for all ranks of its mesh, and judge its values where they fit a cap.

The proof needs no compiler and no devices. Values need the compiler, which reads the program's module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...runtime.lanes.late_frees import late_frees
from ...runtime.named_entries.program_set import ProgramSet
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
    kept: tuple[str, ...] = ()
    """A line for each function that keeps a tensor longer than it is used."""

    @property
    def passed(self) -> bool:
        """Whether the program is safe and keeps no tensor for too long, and its values do not differ."""
        return self.verdict.safe and not self.kept and (self.values is None or self.values.judgement != "differs")

    @property
    def is_judged(self) -> bool:
        """Whether values were judged, or the order refuted."""
        return self.values is None or self.values.judgement != "not judged"

    def to_json(self) -> Mapping[str, Json]:
        values = {} if self.values is None else {"values": self.values.to_json()}
        order = {**self.verdict.to_json(), "kept": list(self.kept)}
        return {**order, **values, "ranks": self.ranks, "seconds": self.seconds}


@dataclass(frozen=True)
class FolderVerdict:
    """The verdicts on the entries of a folder, by name; what entries share was compared when it was loaded."""

    entries: Mapping[str, ProgramVerdict]
    has_names: bool

    @property
    def only(self) -> ProgramVerdict:
        """That of a folder of one program."""
        [verdict] = self.entries.values()
        return verdict

    @property
    def passed(self) -> bool:
        """Whether all entries passed."""
        return all(each.passed for each in self.entries.values())

    @property
    def is_judged(self) -> bool:
        """Whether the values of all were judged."""
        return all(each.is_judged for each in self.entries.values())

    def to_json(self) -> Mapping[str, Json]:
        """That of the only program, or of each entry by name."""
        found = {name: dict(each.to_json()) for name, each in self.entries.items()}
        return {"entries": found} if self.has_names else next(iter(found.values()))


def verify_program(
    folder: str,
    memory_cap_bytes: int | None,
    judge: Callable[[Program], Values],
    backend: Backend = Backend.NCCL,
    entry: str | None = None,
) -> FolderVerdict:
    """Prove the entries of a folder, or one of them, and judge their values; the memory cap is per rank of a program.

    Errors: ProgramError E0301 to E0306, E0319, E0316, E0714.
    """
    with progress(3) as bar:
        bar.show("load", 0)
        programs = ProgramSet.load(folder).selected(entry)
        found = {}
        for name, program in programs:
            where = f" of {name}" if programs.has_names else ""
            bar.show(f"order{where}", 1)
            start = time.perf_counter()
            verdict = prove(program, memory_cap_bytes=memory_cap_bytes, backend=backend)
            seconds = time.perf_counter() - start
            bar.show(f"values{where}", 2)
            values = judge(program) if verdict.safe else None
            kept = late_frees(program) if verdict.safe and program.ir.strip() else ()  # by hand one may free nothing
            found[name] = ProgramVerdict(verdict, values, program.mesh.ranks, seconds, tuple(kept))
        return FolderVerdict(found, has_names=programs.has_names)


def show_verdict(verdict: FolderVerdict) -> None:
    """Print the figures of a safe program, or the counterexample, then the verdict on values; for each entry."""
    for name, proved in verdict.entries.items():
        if verdict.has_names:
            say(f"entry {name}")
        _show(proved)


def _show(proved: ProgramVerdict) -> None:
    say(proved.verdict.render())
    for line in proved.kept:
        say(f"memory: {line}")
    if proved.values is not None:
        say(proved.values.summary)
        for line in proved.values.lines:
            say(f"  {line}")
