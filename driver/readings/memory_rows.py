"""Compare the memory that a program needs with the caps in the text of its plan."""

from __future__ import annotations

from collections.abc import Iterator

from ...runtime.program.program import Program
from ...runtime.prover.prove import prove
from ...runtime.prover.types import Types
from .plan_text import PlanText


def peak_facts(program: Program, plan: PlanText) -> Iterator[tuple[str, object, object]]:
    """For each cap in bytes: the fact's name, the proven peak of a rank where it is above, and the cap."""
    caps = plan.memory_caps
    request = program.manifest.source.get("request")
    if not caps or (isinstance(request, dict) and request.get("dtype") == "float64"):
        return  # the caps are those of the plan's formats
    peak = prove(program, types=Types.STATED).peak_bytes
    for statement, cap in caps.items():
        yield f"{statement} memory", f"a peak of {peak} bytes" if peak > cap else cap, cap
