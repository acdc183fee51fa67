"""Compare which collectives stand beside products and norms with what the text of a plan fuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction
from .phases import axes_of, viewed
from .plan_text import PlanText

_PRODUCTS = {"aten.mm.default": 0, "aten.bmm.default": 0, "aten.addmm.default": 1}
"""By operation, which operand has the rows of its result."""
_NORMS = {"layer_norm": ("aten.native_layer_norm.",), "rms_norm": ("aten.pow.", "aten._fused_rms_norm.")}
_ADDED = 3
"""Sums of a residual between a collective and its norm, at most."""


def fused_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """A fact for each fusion that is stated, found nowhere, and possible; not if a remark says why it found nothing."""
    for fusion in () if _says_why(program) else plan.overlap.get("fuse", ()):
        kind, _, other = fusion.partition("+")
        kind, other = (other, kind) if kind == "matmul" else (kind, other)
        sites = [axis for function in program.functions.values() for axis in _sites(program, function, kind, other)]
        done = "reduce_scatter" if other.endswith("_norm") else "permute"
        if sites and not any(_moves(program, done, axis) for axis in sites):
            yield f"overlap fuse {fusion}", f"{kind} beside {other} in {len(sites)} places, fused in none", "them fused"


def _says_why(program: Program) -> bool:
    remarks = program.remarks if isinstance(program.remarks, list) else []
    texts = [
        str(each["plan"].get("text", ""))
        for each in remarks
        if isinstance(each, Mapping) and each.get("kind") != "applied" and isinstance(each.get("plan"), Mapping)
    ]
    return any(text.startswith(("overlap", "fuse")) for text in texts)


def _moves(program: Program, kind: str, axis: str) -> bool:
    steps = (step for function in program.functions.values() for step in function.code)
    return any(step.op.startswith(f"comm.{kind}") and axis in axes_of(step) for step in steps)


def _sites(program: Program, function: Function, kind: str, other: str) -> Iterator[str]:
    """The axes of collectives of a kind that make a product's rows, take a product's result, or lead to a norm."""
    inputs = {each.slot for each in program.inputs} if function is program.functions["main"] else set()
    waits = {step.reads()[0]: step.writes()[0] for step in function.code if step.op == "comm.wait"}
    made = {slot: step for step in function.code for slot in step.writes()}
    for step in function.code:
        if step.op.removesuffix("_start") != f"comm.{kind}" or not step.writes():
            continue
        operand, result = viewed(function, step.reads()[0]), waits.get(step.writes()[0], step.writes()[0])
        if kind == "reduce_scatter":
            is_site = operand in made and made[operand].op in _PRODUCTS
        elif kind == "all_gather":
            is_site = operand not in inputs and any(_has_rows(function, each, result) for each in function.code)
        else:
            is_site = other in _NORMS and _leads_to(function, result, _NORMS[other], _ADDED)
        if is_site:
            yield axes_of(step)[0]


def _has_rows(function: Function, step: Instruction, slot: int) -> bool:
    """Whether a product has a gathered value as the operand whose rows are those of its result."""
    index = _PRODUCTS.get(step.op)
    return index is not None and viewed(function, step.reads()[index]) == slot


def _leads_to(function: Function, slot: int, ops: tuple[str, ...], added: int) -> bool:
    readers = [step for step in function.code if any(viewed(function, read) == slot for read in step.reads())]
    if any(step.op.startswith(ops) for step in readers):
        return True
    sums = [step.writes()[0] for step in readers if step.op.startswith("aten.add.") and step.writes()]
    return added > 0 and any(_leads_to(function, each, ops, added - 1) for each in sums)
