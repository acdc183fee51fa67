"""Compare the formats of messages between stages with the one that the text of a plan says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...runtime.program.program import Program
from .plan_text import PlanText

_DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def message_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
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
