"""Compare the room that a program reserves for rows of experts, and what it moves, with the text of its plan."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod

from ...runtime.program.program import Program
from .phases import axes_of
from .plan_text import PlanText


def expert_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """What moves; and for each exchange of rows, the rows that a rank has room for.

    A rank sends its own rows, which are the even share, and receives into the room; the way back is the other way
    round. Shares of uneven parts are rounded, so that as many rows more or less as the bound count as equal. With a
    capacity the room follows from that.
    """
    stated = plan.stated("experts")
    yield from _moves(program, plan)
    if any(each.items.get("capacity", ["none"]) != ["none"] for each in stated):
        return
    sizes = dict(plan.mesh)
    for name, function in program.functions.items():
        for step in function.code:
            bounds = [each.items.get("bound") for each in stated if {*each.axes} >= {*axes_of(step)}]
            if "all_to_all_rows" not in step.op or not bounds:
                continue
            operand, result = program.type_of(name, step.reads()[0]), program.type_of(name, step.writes()[0])
            if operand is None or result is None:
                continue
            share, room = sorted((operand.shape[0], result.shape[0]))
            ranks = prod(sizes[axis] for axis in axes_of(step))
            rooms = {min(ceil(share * float(bound[0])), share * ranks) if bound else share * ranks for bound in bounds}
            slack = max((ceil(float(bound[0])) for bound in bounds if bound), default=0)
            expected = min(rooms, key=lambda each: abs(each - room))
            found = expected if abs(expected - room) <= slack else room
            yield "experts bound", f"room for {found} rows", f"room for {expected} rows"


def _moves(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """Whether rows are exchanged over the axes of a statement that says what moves, or else weights."""
    exchanged = {
        axis
        for function in program.functions.values()
        for step in function.code
        if "all_to_all_rows" in step.op
        for axis in axes_of(step)
    }
    moves = {each.axes: each.items.get("move", ["tokens"])[0] for each in plan.stated("experts")}
    for axes, expected in moves.items():
        ranks = prod(dict(plan.mesh)[axis] for axis in axes)
        if expected != "auto" and ranks > 1 and len(moves) == 1:
            yield "experts move", "tokens" if exchanged & {*axes} else "weights", expected
