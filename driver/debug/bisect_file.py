"""`stretto bisect FILE -p PIPELINE`: what breaks a module, from its text, and how it is told."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ...ir.source_text import read_module
from ...passes.manager import single
from ...passes.pipeline_text import print_pipeline
from ...runtime.program.arguments import Json
from ..check.pass_check import Breakage, PassVerdict, Terms
from ..ir_files.module_source import Source
from ..text.console import heading, note, progress, say, table
from .bisect import Bisection, bisect
from .faulty_op import GuiltyOp

_DIFFER = 6
"""So many results that differ are told."""
_OTHERS = 5
"""So many other candidates are told."""
BROKEN: Mapping[Breakage, str] = {
    Breakage.VALUES: "changes values",
    Breakage.ORDER: "lets ranks wait for each other, or differ in a collective",
    Breakage.INVALID: "leaves a module that is not valid",
    Breakage.REFUSED: "leaves a module that cannot be run",
    Breakage.FAILED: "fails",
}
"""What a pass does that breaks a module."""

_OPERATION: Mapping[Breakage, str] = {
    **dict.fromkeys(Breakage, "The operation"),
    Breakage.VALUES: "The first operation that gives what the module before never had",
    Breakage.REFUSED: "The operation at which the run stops",
}


def bisect_source(source: Source, terms: Terms) -> Bisection:
    """Bisect a module's text. Errors: those of `read_module` and of `bisect`, E0410 to E0416 in the pipeline."""
    steps = list(single(source.steps()))
    module = read_module(source.text, source.name)
    with progress(len(steps) + 1) as bar:
        bar.to("the module as given")
        return bisect(module, steps, terms, lambda number, name: bar.to(name, number + 1))


def bisection_json(found: Bisection) -> Mapping[str, Json]:
    """All of it: a row for each pass, what broke, and the operation."""
    broken = found.broken
    return {
        "broken": found.broken is not None,
        "unchecked": found.unchecked or None,
        "passes": list(found.passes),
        "kept": list(found.passes[: found.index]),
        "pass": found.pass_name,
        "breakage": None if broken is None else str(broken.breakage),
        "code": broken.code if broken else None,
        "error": broken.error if broken else None,
        "differ": [{"name": each.name, "error": each.error} for each in broken.differ] if broken else [],
        "message": list(broken.message) if broken else [],
        "stuck": [_stuck(broken, at) for at in range(len(broken.stuck))] if broken else [],
        "op": None if found.op is None else found.op.to_json(),
    }


def show_bisection(found: Bisection, source: Source) -> None:
    """Print a row for each pass, what breaks, at which operation, and how to see that module."""
    broken, kept = found.broken, len(found.passes) if found.index is None else found.index
    rows = [
        (name, ("not checked" if found.unchecked else "kept") if at < kept else "not run")
        for at, name in enumerate(found.passes)
    ]
    if broken is not None:
        rows[kept] = (broken.name, str(broken.breakage))
    table(("pass", "verdict"), rows)
    if broken is None:
        say()
        if found.unchecked:
            say(f"not checked: no pass breaks the order, and {found.unchecked}")
            return
        count = len(found.passes)
        say(f"kept: {'the pass' if count == 1 else f'all {count} passes'} left values and order as they were")
        return
    say()
    say(f'"{broken.name}" is the first pass that {BROKEN[broken.breakage or Breakage.VALUES]}')
    _show_verdict(broken)
    if found.op is not None:
        heading(_OPERATION[broken.breakage or Breakage.VALUES])
        _show_op(found.op)
    _show_command(found, source)


def _show_verdict(broken: PassVerdict) -> None:
    worst = sorted(broken.differ, key=lambda each: -each.error)
    for each in worst[:_DIFFER]:
        say(f"  {each.name}: largest error {each.error:.1e}")
    if len(worst) > _DIFFER:
        say(f"  and {len(worst) - _DIFFER} of {broken.results} results more")
    for line in broken.message:
        say(f"  {line}")


def _show_op(op: GuiltyOp) -> None:
    place = op.place
    say(f"  {place}")
    if place.text:
        say(f"  line {place.line} of the module that the pass leaves, in @{place.function}:")
        say(f"    {place.text}")
    _rows("reads", [str(each) for each in op.operands])
    _rows("shown by", op.why)
    if op.lost is not None:
        _rows("gone", [f"the value of {op.lost}, which the module before had"])
    _rows("or else", [str(each) for each in op.others[:_OTHERS]])
    if len(op.others) > _OTHERS:
        say(f"            and {len(op.others) - _OTHERS} more (--json has all)")


def _rows(head: str, lines: Sequence[str]) -> None:
    for at, line in enumerate(lines):
        say(f"  {head if at == 0 else '':<9} {line}")


def _show_command(found: Bisection, source: Source) -> None:
    """How to get the module that the pass leaves; to stderr, since it is no result."""
    steps = list(single(source.steps()))[: (found.index or 0) + 1]
    if source.name != "<stdin>" and found.breakage is not Breakage.FAILED:
        command = ["stretto", "opt", source.name, "--no-verify", "-p", print_pipeline(steps)]
        note(f"the module that it leaves: {shlex.join(command)}")


def _stuck(broken: PassVerdict, at: int) -> Json:
    stuck = broken.stuck[at]
    return {
        "rank": stuck.rank, "op": stuck.op, "waits_for": list(stuck.waits_for),
        "module_path": stuck.origin.module_path, "file": stuck.origin.file, "line": stuck.origin.line,
    }  # fmt: skip
