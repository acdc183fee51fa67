"""Compare where a program starts and awaits communication, and its lanes, with what the text of its plan says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction
from .plan_text import PlanText

_BUILT_IN = ("compute", "comm")
_KIND = {"receive": "send", "all_to_all_rows": "all_to_all"}
"""By operation, its kind in plans, where that has another name."""


def overlap_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """For each kind that the plan leaves in place, and each lane: the fact's name, the program's word, the plan's."""
    items = plan.overlap
    functions = program.functions.values()
    kinds = sorted({_kind(step) for function in functions for step in function.code if _starts(step)})
    for kind in kinds:
        if items.get("level") == ["0"] or (
            "hide" in items and kind not in items["hide"] and not (kind == "permute" and "fuse" in items)
        ):
            moved = any(_kind(function.code[index]) == kind for function in functions for index in _moved(function))
            yield f"overlap {kind}", "it beside other work" if moved else "it in place", "it in place"
    axes = [lane for lane in items.get("lanes", ()) if lane not in _BUILT_IN]
    for function in functions:
        for step in function.code:
            over = step.kwargs.get("axes")
            lane = next((axis for axis in axes if isinstance(over, list | tuple) and axis in over), "")
            if _starts(step) and step.lane != lane:
                yield f"overlap {_kind(step)}", f"it on {step.lane or 'comm'}", f"it on {lane or 'comm'}"


def _moved(function: Function) -> Iterator[int]:
    """The positions of starts between which and a wait for them something else stands than waits."""
    for index, step in enumerate(function.code):
        if _starts(step):
            waits = [at for at in range(index + 1, len(function.code)) if _waits_for(function.code[at], step)]
            between = function.code[index + 1 : max(waits, default=index)]
            if len(waits) < len(step.writes()) or any(each.op != "comm.wait" for each in between):
                yield index


def _waits_for(step: Instruction, start: Instruction) -> bool:
    return step.op == "comm.wait" and _any_in(step.reads(), start.writes())


def _any_in(slots: Sequence[int], others: Sequence[int]) -> bool:
    return any(slot in others for slot in slots)


def _starts(step: Instruction) -> bool:
    return step.op.startswith("comm.") and step.op.endswith("_start")


def _kind(step: Instruction) -> str:
    name = step.op.removeprefix("comm.").removesuffix("_start").removesuffix("_coalesced")
    return _KIND.get(name, name)
