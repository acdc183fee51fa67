"""Compare in how many chunks a program computes the head of a loss with what the text of its plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ...runtime.program.program import Program
from .phases import forward_code
from .plan_text import PlanText

_PRODUCTS = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.linear.")


def loss_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """The number of times that one product of the forward stands in the program, if none does as often as stated.

    A ring of chunks, and what a stage computes again, multiply it.
    """
    for count in (int(each.words[2]) for each in plan.stated("split") if each.words[0] == "loss"):
        times = _times(program)
        multiplied = program.pipeline is not None or "fuse" in plan.overlap
        if program.manifest.mode == "train" and times:
            is_right = any(each == count or (multiplied and each % count == 0) for each in times.values())
            yield "split loss", count if is_right else f"products in at most {max(times.values())} chunks", count


def _times(program: Program) -> Counter[tuple[object, ...]]:
    times: Counter[tuple[object, ...]] = Counter()
    for name, code in forward_code(program):
        for step in code:
            if step.op.startswith(_PRODUCTS):
                times[name, step.op, step.loc, program.functions[name].types[step.writes()[0]]] += 1
    return times
