"""`stretto bisect FILE -p PIPELINE`: bisect the text of a module, and print the result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ...ir.source_text import read_module
from ...passes.manager import single
from ...passes.pipeline_text import print_pipeline
from ...runtime.program.arguments import Json
from ..check.pass_check import Breakage, CheckOptions, PassVerdict
from ..ir_files.module_source import Source
from ..text.console import heading, note, progress, say, table
from .bisect import Bisection, bisect
from .faulty_op import FaultyOp

_RESULTS_SHOWN = 6
"""The most differing results that are printed."""
_CANDIDATES_SHOWN = 5
"""The most other candidates that are printed."""
BROKEN: Mapping[Breakage, str] = {
    Breakage.VALUES: "changes values",
    Breakage.ORDER: "breaks the order: ranks deadlock, or run different collectives",
    Breakage.DTYPES: "changes the dtypes in which the module computes",
    Breakage.INVALID: "leaves an invalid module",
    Breakage.REFUSED: "leaves a module that cannot be run",
    Breakage.FAILED: "fails",
}
"""How a pass breaks a module, as the predicate of a sentence."""

_OP_HEADING: Mapping[Breakage, str] = {
    **dict.fromkeys(Breakage, "The operation"),
    Breakage.VALUES: "The first operation with a wrong value",
    Breakage.REFUSED: "The operation at which the run stops",
}


def bisect_source(source: Source, options: CheckOptions) -> Bisection:
    """Bisect a module's text. Errors: those of `read_module` and of `bisect`, E0410 to E0416 in the pipeline."""
    steps = list(single(source.steps()))
    module = read_module(source.text, source.name)
    with progress(len(steps) + 1) as bar:
        bar.show("the module as given")
        return bisect(module, steps, options, lambda number, name: bar.show(name, number + 1))


def bisection_json(bisection: Bisection) -> Mapping[str, Json]:
    """The passes, the breakage and the operation, as JSON."""
    broken = bisection.broken
    return {
        "broken": bisection.broken is not None,
        "unchecked": bisection.unchecked or None,
        "passes": list(bisection.passes),
        "kept": list(bisection.passes[: bisection.index]),
        "pass": bisection.pass_name,
        "breakage": None if broken is None else str(broken.breakage),
        "code": broken.code if broken else None,
        "error": broken.error if broken else None,
        "differ": [{"name": result.name, "error": result.error} for result in broken.differing] if broken else [],
        "message": list(broken.message) if broken else [],
        "stuck": [_stuck_json(broken, index) for index in range(len(broken.stuck))] if broken else [],
        "op": None if bisection.op is None else bisection.op.to_json(),
    }


def show_bisection(bisection: Bisection, source: Source) -> None:
    """Print a row for each pass, the breakage, the operation, and the command that prints the broken module."""
    broken, kept = bisection.broken, len(bisection.passes) if bisection.index is None else bisection.index
    rows = [
        (name, ("not judged" if bisection.unchecked else "kept") if index < kept else "not run")
        for index, name in enumerate(bisection.passes)
    ]
    if broken is not None:
        rows[kept] = (broken.name, str(broken.breakage))
    table(("pass", "verdict"), rows)
    if broken is None:
        say()
        if bisection.unchecked:
            say(f"not judged: no pass breaks the order, and {bisection.unchecked}")
            return
        count = len(bisection.passes)
        say(f"kept: {'the pass' if count == 1 else f'all {count} passes'} left values and order as they were")
        return
    say()
    say(f'"{broken.name}" is the first pass that {BROKEN[broken.breakage or Breakage.VALUES]}')
    _show_verdict(broken)
    if bisection.op is not None:
        heading(_OP_HEADING[broken.breakage or Breakage.VALUES])
        _show_op(bisection.op)
    _show_command(bisection, source)


def _show_verdict(broken: PassVerdict) -> None:
    worst = sorted(broken.differing, key=lambda result: -result.error)
    for result in worst[:_RESULTS_SHOWN]:
        say(f"  {result.name}: largest error {result.error:.1e}")
    if len(worst) > _RESULTS_SHOWN:
        say(f"  and {len(worst) - _RESULTS_SHOWN} more of {broken.results} results")
    for line in broken.message:
        say(f"  {line}")


def _show_op(op: FaultyOp) -> None:
    place = op.place
    say(f"  {place}")
    if place.text:
        say(f"  line {place.line} of the module after the pass, in @{place.function}:")
        say(f"    {place.text}")
    _labelled("reads", [str(entry) for entry in op.operands])
    _labelled("shown by", op.why)
    if op.lost is not None:
        _labelled("lost", [f"the value of {op.lost}, which the module before the pass had"])
    _labelled("or else", [str(entry) for entry in op.others[:_CANDIDATES_SHOWN]])
    if len(op.others) > _CANDIDATES_SHOWN:
        say(f"            and {len(op.others) - _CANDIDATES_SHOWN} more; --json lists all")


def _labelled(head: str, lines: Sequence[str]) -> None:
    for index, line in enumerate(lines):
        say(f"  {head if index == 0 else '':<9} {line}")


def _show_command(bisection: Bisection, source: Source) -> None:
    """Print the command that gives the module after the pass; to stderr, since it is no result."""
    steps = list(single(source.steps()))[: (bisection.index or 0) + 1]
    if source.name != "<stdin>" and bisection.breakage is not Breakage.FAILED:
        command = ["stretto", "opt", source.name, "--no-verify", "-p", print_pipeline(steps)]
        note(f"to print the module after it: {shlex.join(command)}")


def _stuck_json(broken: PassVerdict, index: int) -> Json:
    rank = broken.stuck[index]
    return {
        "rank": rank.rank, "op": rank.op, "waits_for": list(rank.waits_for),
        "module_path": rank.origin.module_path, "file": rank.origin.file, "line": rank.origin.line,
    }  # fmt: skip
