"""Compare the collectives of a program with the methods of attention that the text of its plan names."""

from __future__ import annotations

from collections.abc import Iterator

from ...runtime.program.program import Program
from .phases import is_attention
from .plan_text import PlanText

_KINDS = {
    "all_to_all": "all_to_all",
    "ring": "permute",
    "bidirectional": "permute",
    "state": "all_gather",
    "gather": "all_gather",
}
"""By method, the collective that moves heads of queries, keys or values over its axes."""
_OF_TWO = {"ring_all_to_all": ("ring", "all_to_all")}
"""By method of two axes, those of each."""
_SUM_ALONG = "cumsum"
"""What linear attention has in its place."""


def attention_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """For each axis of more than one rank with a method: name of the fact, what the program has, what the plan says."""
    instructions = [each for function in program.functions.values() for each in function.code]
    if not any(is_attention(program, each) or _SUM_ALONG in each.op for each in instructions):
        return
    moved = {
        (each.op.removeprefix("comm.").removesuffix("_start"), axis)
        for each in instructions
        for axis in _axes(each.kwargs.get("axes"))
    }
    sizes = dict(plan.mesh)
    has_softmax = any(is_attention(program, each) for each in instructions)
    for axis, method in _methods(plan):
        if sizes[axis] > 1 and (has_softmax or method == "state"):
            kind = _KINDS[method]
            yield f"attention over {axis}", kind if (kind, axis) in moved else f"no {kind}", kind


def _methods(plan: PlanText) -> Iterator[tuple[str, str]]:
    for axes, method in plan.attention:
        yield from zip(axes, _OF_TWO.get(method, [method] * len(axes)), strict=True)


def _axes(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()
