"""What a program runs once although the text of its plan splits the tokens or the batch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from ...runtime.program.program import Program
from .plan_text import PlanText, covers

_WORK = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution")
"""Operations that compute with weights: each line of a model has them once, but for nanobatches."""
_LAYER = re.compile(r"(?:^|\.)(?:\d+|\*)(?:\.|$)")


def run_once_against_plan(program: Program, plan: PlanText) -> Iterator[tuple[str, str]]:
    """A name and a note for each statement by which something is to run N times, if nothing does.

    Of those with `from` it says nothing: they may do nothing.
    """
    for subject, count, items in plan.split:
        if "from" in items:
            continue
        patterns = tuple(pattern[1:-1] for pattern in items.get("in", ()))
        most = max(_times(program, patterns).values(), default=count)
        if most < count:
            yield f"split {subject}", f"the program runs no layer in {count} nanobatches, as the plan says"


def _times(program: Program, patterns: tuple[str, ...]) -> Counter[tuple[str, str, int]]:
    """By function, operation and place of a layer, or of a module that a glob covers: how often it stands there."""
    times: Counter[tuple[str, str, int]] = Counter()
    for name, function in program.functions.items():
        for step in function.code:
            kind = step.op.split(".")[1] if step.op.startswith("aten.") else ""
            if kind in _WORK and step.loc is not None and _is_about(program.locations[step.loc].module, patterns):
                times[name, step.op, step.loc] += 1
    return times


def _is_about(module: str, patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return bool(_LAYER.search(module))
    parts = module.split(".")
    around = [".".join(parts[: count + 1]) for count in range(len(parts))]
    numbered = [pattern for pattern in patterns if "*" not in module or not any(c.isdigit() for c in pattern)]
    return any(covers(pattern, path) for pattern in numbered for path in around)
