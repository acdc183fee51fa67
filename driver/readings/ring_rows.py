"""Compare what travels in rings, and in which layout tokens lie, with what the text of a plan says of attention."""

from __future__ import annotations

from collections.abc import Iterator

from ...runtime.program.program import Program
from ...runtime.program.records import SlotType
from .phases import axes_of, is_attention, viewed
from .plan_text import PlanText


def ring_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """For each statement about a ring that the program has: what travels, and that inputs are brought to the layout."""
    sizes = dict(plan.mesh)
    for statement in plan.stated("attention"):
        method = statement.items["method"][0]
        axes = statement.axes[:1] if method == "ring_all_to_all" else statement.axes
        permuted = _permuted(program, {axis for axis in axes if sizes[axis] > 1})
        if method not in ("ring", "bidirectional", "ring_all_to_all") or not permuted:
            continue
        name = f"attention over {', '.join(axes)}"
        words = {True: "queries and outputs travel, with logsumexps", False: "keys and values travel"}
        yield name, words[_has_logsumexps(permuted)], words[method == "bidirectional"]
        if statement.items.get("layout") == ["zigzag"] and _is_causal(program):
            found = "zigzag" if _gathers_inputs(program, {*axes}) else "tokens as the inputs have them"
            yield f"{name}: layout", found, "zigzag"


def _permuted(program: Program, axes: set[str]) -> list[SlotType]:
    found = (
        program.type_of(name, step.reads()[0])
        for name, function in program.functions.items()
        for step in function.code
        if step.op.startswith("comm.permute") and axes & {*axes_of(step)}
    )
    return [type_ for type_ in found if type_ is not None and "float" in type_.dtype]


def _has_logsumexps(permuted: list[SlotType]) -> bool:
    """Whether something travels that has one number for each row of something else that does."""
    shapes = {type_.shape for type_ in permuted}
    return bool(shapes & {shape[:-1] for shape in shapes})


def _is_causal(program: Program) -> bool:
    steps = (step for function in program.functions.values() for step in function.code if is_attention(program, step))
    kinds = (function.kind for function in program.functions.values() if function.kind is not None)
    return any(True in (*step.args, *step.kwargs.values()) for step in steps) or any(
        kind.name.startswith("attention") and kind.attributes.get("causal") is True for kind in kinds
    )


def _gathers_inputs(program: Program, axes: set[str]) -> bool:
    inputs = {each.slot for each in program.of_kind("input")}
    return any(
        step.op.startswith("comm.all_gather")
        and axes & {*axes_of(step)}
        and viewed(function, step.reads()[0]) in inputs
        for function in program.functions.values()
        for step in function.code
    )
