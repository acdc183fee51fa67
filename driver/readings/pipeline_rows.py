"""Compare a pipeline with what the text of a plan says: its axis, microbatches, stages and the formats of messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

from ...runtime.program.program import Program
from .plan_text import PlanText, covers
from .schedule_rows import schedule_facts

_DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def pipeline_facts(program: Program, plan: PlanText, model: nn.Module | None) -> Iterator[tuple[str, object, object]]:
    """The facts of a program for training or inference; nothing else of a pipeline over one rank, which needs none."""
    stated, found = plan.pipeline, program.pipeline
    if stated and dict(plan.mesh)[stated["over"][0]] == 1:
        return
    yield "pipeline axis", found and found.axis, stated["over"][0] if stated else None
    if found is None or not stated:
        return
    yield "pipeline microbatches", found.microbatches, int(stated["microbatches"][0])
    yield "pipeline per microbatch", found.separate_microbatches, "per" in stated
    yield from _messages(program, plan)
    if program.manifest.mode == "train":
        if model is not None:
            for pattern in stated.get("split", ()):
                yield from _split_facts(program, pattern[1:-1], model)
        yield from schedule_facts(program, plan)


def _messages(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """The formats of all floating messages, where the plan says `transfer`. In float64, which raises it, nothing."""
    request = program.manifest.source.get("request")
    is_raised = isinstance(request, Mapping) and request.get("dtype") == "float64"
    if program.pipeline is None or "transfer" not in plan.pipeline or is_raised:
        return
    expected = _DTYPES[plan.pipeline["transfer"][0]]
    types = (
        program.type_of(name, step.reads()[0])
        for name, function in program.functions.items()
        for step in function.code
        if step.op.startswith("comm.send")
    )
    found = {type_.dtype for type_ in types if type_ is not None and type_.dtype in _DTYPES.values()}
    yield "pipeline transfer", ", ".join(sorted(found)) or expected, expected


def _split_facts(program: Program, pattern: str, model: nn.Module) -> Iterator[tuple[str, object, object]]:
    """That each module of a pattern, if it has parameters, begins a stage."""
    owners = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    stated = [name for name, module in model.named_modules() if covers(pattern, name) and [*module.parameters()]]
    stages = [name for name in program.functions if re.fullmatch(r"forward_[0-9]+", name)]
    begun = [_first_module(program, name, owners) for name in stages]
    for module in stated:
        found = any(_within(each, module) or _within(module, each) for each in begun)
        yield f"pipeline split {module}", _begins(found), _begins(True)


def _begins(found: bool) -> str:
    return "a stage that begins there" if found else "no stage that begins there"


def _first_module(program: Program, function: str, owners: set[str]) -> str:
    """The module of the first step that calls a layer, or is inside of a module with parameters of its own."""
    for step in program.functions[function].code:
        module = program.locations[step.loc].module if step.loc is not None else ""
        if module and (step.op == "call" or module in owners):
            return module
    return ""


def _within(inner: str, outer: str) -> bool:
    return bool(inner) and (inner == outer or inner.startswith(f"{outer}."))
