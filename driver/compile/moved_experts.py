"""Choose what moves for `experts { move auto }`: rows to experts, or weights to rows, whichever sends fewer bytes.

The model is compiled with `move tokens` first. `route-rows` reports the bytes that either move sends
(`Report.figures`). Where weights are fewer bytes, the model is compiled again with `move weights`. Stored placements
stay as they are.

Source: Tutel (arXiv:2206.03382), section 3.1. Tutel chooses in each step; here the sizes of the call decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...dsl.plan import Plan
from ...dsl.routing.experts import Experts, Move
from ...passes.base import Remark, RemarkKind
from ...passes.partition.route_rows import RouteRows, figures_of
from .request import Compiled

Compile = Callable[[Plan, Sequence[Remark]], Compiled]
"""Compiles with a plan; the remarks say which moves were chosen."""


def with_fewest_bytes(plan: Plan, compile_with: Compile, *, sizes_vary: bool) -> Compiled:
    """The program of a plan with each `move auto` decided; rows move where one program is for many sizes."""
    undecided = [each for each in plan.experts if each.move is Move.AUTO]
    if not undecided:
        return compile_with(plan, ())
    if sizes_vary:
        why = "move auto is move tokens: one program for many sizes cannot choose by bytes"
        return compile_with(plan, [Remark(RouteRows.name, RemarkKind.NOTE, why, span=each.span) for each in undecided])
    by_rows = compile_with(_with_moves(plan, dict.fromkeys(map(id, undecided), Move.TOKENS)), ())
    figures = {
        name: number
        for run in by_rows.runs
        if run.name == RouteRows.name
        for name, number in run.report.figures.items()
    }
    moves: dict[int, Move] = {}
    remarks: list[Remark] = []
    for statement in undecided:
        rows, weights = (figures.get(name, 0) for name in figures_of(_cutting(plan, statement)))
        move = Move.WEIGHTS if weights < rows else Move.TOKENS
        moves[id(statement)] = move
        implied = str(statement).replace(f"move {Move.AUTO}", f"move {move}")
        chosen = f"move auto is move {move}: a rank sends {rows} bytes of rows, or {weights} of weights"
        remarks.append(Remark(RouteRows.name, RemarkKind.IMPLIED, implied, span=statement.span))
        remarks.append(Remark(RouteRows.name, RemarkKind.APPLIED, chosen, span=statement.span))
    return compile_with(_with_moves(plan, moves), remarks)


def _cutting(plan: Plan, statement: Experts) -> list[str]:
    """The axes of a statement that have more than one rank."""
    sizes = dict(plan.mesh.axes)
    return [axis for axis in statement.axes if sizes[axis] > 1]


def _with_moves(plan: Plan, moves: dict[int, Move]) -> Plan:
    """The plan with the moves of some statements, by their ids."""
    statements = [
        replace(each, move=moves[id(each)]) if isinstance(each, Experts) and id(each) in moves else each
        for each in plan.statements
    ]
    return replace(plan, statements=tuple(statements))
