"""What a program computes again, or keeps, although the text of its plan says otherwise of its kind of operation.

Read are kinds that have gradient operations of their own (attention, gelu, softmax, layer_norm): of others, a gradient
looks like what runs again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction
from .nanobatches import is_about
from .phases import backward_code, kind_of, viewed
from .plan_text import PlanText


def kinds_against_plan(program: Program, plan: PlanText) -> Iterator[tuple[str, str]]:
    """A name and a note for each kind that is excepted and runs again, or that is to run again and is kept."""
    code = [step for _, steps in backward_code(program) for step in steps]
    if not code:
        return
    readable = {_kind(op) for op in (_op(program, step) for step in code) if "backward" in op}
    statements = plan.stated("recompute")
    for statement in statements:
        excepted = {*statement.items.get("except", ())}
        shared = excepted.intersection(*(each.items.get("except", ()) for each in statements))
        for kind in sorted(shared & readable):
            if statement.patterns and any(_is_of(program, step, kind, statement.patterns) for step in code):
                yield f"recompute except {kind}", "it runs again in the backward; the plan says that it does not"
        for kind in sorted({*statement.words} & readable - excepted):
            if _keeps(program, kind):
                yield f"recompute {kind}", "the program keeps its result for the backward; the plan says recompute"


def _is_of(program: Program, step: Instruction, kind: str, patterns: tuple[str, ...]) -> bool:
    is_again = _makes(program, step, kind) and step.loc is not None
    return is_again and is_about(program.locations[step.loc or 0].module, patterns)


def _keeps(program: Program, kind: str) -> bool:
    """Whether the backward reads a result of this kind that the forward made."""
    main = program.functions["main"]
    made: set[int] = set()
    for step in main.code[: main.backward_at]:
        if step.op == "call" and not kind_of(program, step):
            function = program.functions[str(step.args[0])]
            inside = _made(program, function, kind)
            outs = zip(step.out, function.results, strict=True)
            made |= {out for out, result in outs if out is not None and viewed(function, result) in inside}
    made |= _made(program, main, kind, main.backward_at)
    return any(viewed(main, slot) in made for step in main.code[main.backward_at :] for slot in step.reads())


def _made(program: Program, function: Function, kind: str, end: int | None = None) -> set[int]:
    return {slot for step in function.code[:end] if _makes(program, step, kind) for slot in step.writes()}


def _makes(program: Program, step: Instruction, kind: str) -> bool:
    """Whether a step is an operation of a kind, and not its gradient."""
    op = _op(program, step)
    return _kind(op) == kind and "backward" not in op


def _op(program: Program, step: Instruction) -> str:
    """The operation of a step, or that as which a called function says what it computes."""
    kind = kind_of(program, step)
    return f"aten.{kind}." if kind else step.op


@cache
def _kind(op: str) -> str:
    """What plans call an operation or its gradient.

    >>> _kind("aten._softmax_backward_data.default"), _kind("aten.native_layer_norm.default")
    ('softmax', 'layer_norm')
    """
    if not op.startswith("aten."):
        return ""
    name = op.split(".")[1]
    if "scaled_dot_product" in name:
        return "attention"
    return name.removesuffix("_data").removesuffix("_backward").lstrip("_").removeprefix("native_")
