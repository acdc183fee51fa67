"""Compare over which axes, and how many at once, stored parameters are gathered with what the text of a plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ...runtime.program.program import Program
from .phases import axes_of
from .plan_text import PlanText

_CAST = "aten._to_copy."


def gather_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """Of `zero`: the axes that `within` leaves out, and whether neighbours share a bucket. Not of pipelines."""
    statements = plan.stated("zero")
    if not statements or program.pipeline is not None:
        return
    withins = {each.items.get("within") and tuple(each.items["within"]) for each in statements}
    if len(withins) == 1 and (names := withins.pop()) and all(each.words[0] == "3" for each in statements):
        yield from _crossings(program, plan.axes_of_all(names))
    buckets = [plan.bytes_of(each.items["bucket"][0]) for each in statements if "bucket" in each.items]
    if buckets and _is_apart(program, buckets[0]):
        yield "zero bucket", "each tensor by itself, and neighbours that fit", f"buckets of {buckets[0]} bytes at most"


def _stored(program: Program) -> dict[int, str]:
    """The slots of main that hold stored parameters or casts of them, by name."""
    names = {each.slot: each.name for each in program.of_kind("parameter") if each.stored_over}
    for step in program.functions["main"].code:
        if step.op.startswith(_CAST) and step.reads()[0] in names:
            names[step.writes()[0]] = names[step.reads()[0]]
    return names


def _crossings(program: Program, within: tuple[str, ...]) -> Iterator[tuple[str, object, object]]:
    """What is stored over others than these, and is not gathered over those first, alone, and once a call."""
    names = _stored(program)
    parameters = program.of_kind("parameter")
    outer = {each.name: [axis for axis in each.stored_over if axis not in within] for each in parameters}
    crossings: Counter[str] = Counter()
    for step in program.functions["main"].code:
        stored = [names[slot] for slot in step.reads() if slot in names and outer[names[slot]]]
        if step.op.startswith("comm.all_gather") and stored:
            crossings.update(stored)
            if {*axes_of(step)} & {*within}:
                axes = ", ".join(axes_of(step))
                yield "zero within", f"{stored[0]} first gathered over {axes}", f"over {', '.join(outer[stored[0]])}"
                return
    again = [name for name, count in crossings.items() if count > 1]
    if again:
        yield "zero within", f"{again[0]} gathered between nodes {crossings[again[0]]} times", "once a call"


def _is_apart(program: Program, most: int) -> bool:
    """Whether nothing is gathered in buckets, although two gathers stand side by side and fit into one."""
    names = _stored(program)
    main = program.functions["main"]
    if any("_coalesced" in step.op for step in main.code):
        return False
    before: tuple[object, int] | None = None
    for step in main.code:
        if step.op.startswith("comm.all_gather") and step.reads()[0] in names:
            type_ = program.type_of("main", step.writes()[0])
            if type_ is None:
                continue
            own = (axes_of(step), type_.dtype), type_.bytes
            if before is not None and before[0] == own[0] and before[1] + own[1] <= most:
                return True
            before = own
        elif not step.op.startswith(("comm.", _CAST)):
            before = None
    return False
