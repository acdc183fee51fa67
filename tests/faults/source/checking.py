"""Which check sees a fault of the source, and which operation `bisect` names for it.

The fault's passes run with it, one by one, on the module that they get without it, then lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
from stretto.driver.check.pass_check import Breakage, CheckOptions
from stretto.driver.debug.bisect import Bisection, bisect
from stretto.driver.debug.op_places import Places
from stretto.ir.module import Module
from stretto.passes.manager import PassManager, Step, Verification, step_name
from stretto.passes.sharding.rules.lookup import _cached_strategies

from .faults import LOWERING, SourceFault
from .models import compilation
from .structure import first_different


@dataclass(frozen=True)
class Found:
    """What `bisect` says of a fault."""

    bisection: Bisection
    expected: str
    """The operation at fault: its line in the module, or its name; empty where no operation is."""
    named: str
    """The operation that `bisect` names, likewise."""

    @property
    def is_found(self) -> bool:
        """Whether some pass, or lowering, is said to break the module."""
        return self.bisection.broken is not None

    @property
    def is_exact(self) -> bool:
        """Whether `bisect` names the operation at fault."""
        return self.named == self.expected


@cache
def found(fault: SourceFault) -> Found:
    """Bisect the fault's passes with it."""
    case = compilation(fault.case)
    names = [step_name(step) for step in case.steps]
    first, last = fault.steps
    is_lowering = first == LOWERING
    text = case.texts[-1] if is_lowering else case.before(first)
    steps = () if is_lowering else case.steps[names.index(first) : names.index(last) + 1]
    module = Module.parse(text)
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch)
        result = bisect(module, steps, CheckOptions(ranges=case.ranges))
    _cached_strategies.cache_clear()
    place = result.op.place if result.op is not None else None
    if fault.op:
        return Found(result, fault.op, "" if place is None else place.op)
    expected = "" if is_lowering else _expected(text, steps[: (result.index or 0) + 1], module, result)
    return Found(result, expected, f"@{place.function}:{place.line}" if place is not None and expected else "")


def _expected(text: str, steps: tuple[Step, ...], faulty: Module, result: Bisection) -> str:
    """The line of the first operation that the passes without the fault do not leave."""
    if result.breakage not in (Breakage.VALUES, Breakage.REFUSED):
        return ""
    right = Module.parse(text)
    PassManager(steps, verification=Verification.NEVER).run(right)
    node = first_different(right, faulty)
    if node is None:
        return ""
    place = Places(faulty).place(node.function, node.path[-1])
    return f"@{place.function}:{place.line}"
