"""Who finds a planted fault: the user's own commands, run one after another as their user would."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from stretto import cli

from .users_models import Case

CRASHES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""Raw errors that a fault may cause: whoever sees a traceback knows that something is wrong."""


class Finder(StrEnum):
    """What can find a fault, the cheapest first."""

    LOADING = "loading"
    COMPILING = "compiling stops"
    VERIFY_FOLDER = "verify DIR"
    VERIFY_TARGET = "verify TARGET --plan"
    RUN_CHECK = "run DIR --check"
    COMPILE_CHECK = "compile --check"
    AGAINST = "run DIR --check --against"
    TRAINING = "training beside PyTorch"
    PROCESSES = "training by processes"


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def stopped(self) -> bool:
        """Whether it ended by an error, and not by a verdict."""
        return "error[" in self.err or self.code == CRASHED


CRASHED = -1
"""The exit code of a command that raised."""


def command(*arguments: object) -> Done:
    """Call the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        except CRASHES as error:
            code = CRASHED
            err.write(f"{type(error).__name__}: {error}")
    return Done(code, out.getvalue(), err.getvalue())


def target_of(case: Case, sources: Path) -> str:
    """What the user calls a model: a function of the file, or a config."""
    scheme, _, config = case.model.partition(":")
    return f"hf:{sources / config}.json" if scheme == "hf" else f"{sources / 'models.py'}:{case.model}"


def compile_case(case: Case, sources: Path, folder: Path, *options: str) -> Done:
    """Compile a model of the user's under a plan."""
    target = target_of(case, sources)
    plan = sources / f"{case.plan}.plan"
    return command("compile", target, "--plan", plan, "-o", folder, *case.options, *options)


def find_in_folder(folder: Path, target: str) -> Finder | None:
    """The first command that finds fault with a saved folder."""
    judged = command("verify", folder, "--values")
    if judged.stopped and "safe" not in judged.out and "counterexample" not in judged.out:
        return Finder.LOADING if "error[E03" in judged.err else Finder.VERIFY_FOLDER
    if judged.code == 1:
        return Finder.VERIFY_FOLDER
    if command("run", folder, "--check").code in (1, CRASHED):
        return Finder.RUN_CHECK
    if command("run", folder, "--check", "--against", target).code in (1, CRASHED):
        return Finder.AGAINST
    return None


def find_in_compile(case: Case, sources: Path, folder: Path, order: Sequence[Finder]) -> Finder | None:
    """The first command that finds fault with the compiler or the runtime, in this order."""
    target, plan = target_of(case, sources), sources / f"{case.plan}.plan"
    for finder in order:
        shutil.rmtree(folder, ignore_errors=True)
        if finder is Finder.VERIFY_TARGET:
            mode = [option for option in case.options if option in ("--mode", "infer")]
            done = command("verify", target, "--plan", plan, *mode)
        else:
            done = compile_case(case, sources, folder, "--check")
        if done.code in (1, CRASHED):
            return Finder.COMPILING if done.stopped else finder
    return None


def table(rows: Sequence[tuple[str, str]], count_by: Callable[[str], str] = str) -> str:
    """A line for each fault, and how many each finder found."""
    counts: dict[str, int] = {}
    for _, outcome in rows:
        counts[count_by(outcome)] = counts.get(count_by(outcome), 0) + 1
    lines = [f"{what:88.88}  {outcome}" for what, outcome in rows]
    totals = [f"{count:5}  {outcome}" for outcome, count in sorted(counts.items(), key=lambda pair: -pair[1])]
    return "\n".join(["", *lines, "", *totals, f"{len(rows):5}  in all"])
