"""Compile until the proven peak of a program is what `recompute auto` allows: the pass fits an estimate."""

from __future__ import annotations

from collections.abc import Callable

from ...dsl.error import MemoryCode, PlanError
from ...dsl.plan import Plan
from ...dsl.spelling import bytes_text
from ...frontend.captured import Mode
from ...frontend.to_ir import Floats
from ...passes.base import RemarkKind
from ...runtime.prover import prove
from .request import Compiled, Options

MAX_COMPILES = 4
"""Each adds to the margin twice what the proven peak was above the memory; the last computes all again."""


def fitted(plan: Plan, options: Options, compiled: Callable[[int], Compiled]) -> Compiled:
    """The program by `compiled`, which takes the bytes by which the estimate is to stay below the memory.

    Raises PlanError E0136 where nothing more can be computed again. In float64, for a check, all tensors are larger
    than in the program that is checked: there the peak is not compared.
    """
    first = compiled(0)
    if plan.memory is None or options.mode is not Mode.TRAIN:
        return first
    margin, program, least = 0, first, _peak(first)
    for left in reversed(range(MAX_COMPILES - 1)):
        over = _peak(program) - plan.memory
        if over <= 0:
            return program
        if _gives_all(program):
            break
        margin = margin + 2 * over if left else plan.memory
        program = compiled(margin)
        least = min(least, _peak(program))
    if _peak(program) <= plan.memory or options.floats is not Floats.AS_CAPTURED:
        return program
    statement = next(each for each in plan.recomputed if each.memory is not None)
    raise PlanError(
        MemoryCode.DOES_NOT_FIT,
        f"a rank needs {least} bytes with all that helps computed again, more than {bytes_text(plan.memory)}",
        span=statement.spans.get("memory", statement.span),
        help="shard or store more over further ranks, take a smaller batch, or allow more memory",
    )


def _peak(compiled: Compiled) -> int:
    return prove(compiled.program).peak_bytes


def _gives_all(compiled: Compiled) -> bool:
    """Whether the pass computes again all that it may."""
    remarks = [remark for run in compiled.runs if run.name == "recompute" for remark in run.report.remarks]
    return any(remark.kind is RemarkKind.MISSED for remark in remarks)
