"""`bisect`: the first pass that breaks a module, in which way, and at which operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
from stretto.driver.bisect import bisect
from stretto.driver.judge import Breakage, Terms
from stretto.ir.attributes import to_attribute
from stretto.ir.module import Module, operations
from stretto.passes.base import Pass, Report
from stretto.passes.start_collectives import StartCollectives

MODULE = """module attributes {comm.level = "comm", comm.mesh = [["dp", 2], ["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>) {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "aten.neg_default"(%0) : (tensor<4xf32>) -> tensor<4xf32>
  return %1 : tensor<4xf32>
}
}
"""


@dataclass(frozen=True)
class Harm(Pass):
    """Does to a module what it was given."""

    name: ClassVar[str] = "do-harm"
    harm: Callable[[Module], None] = lambda module: None

    def run(self, module: Module) -> Report:
        self.harm(module)
        return Report(1)


def setting(name: str, value: object) -> Callable[[Module], None]:
    """Writes a constant of every all_reduce."""

    def harm(module: Module) -> None:
        for op in operations(module.functions()["main"]):
            if op.operation.name == "comm.all_reduce":
                op.attributes[name] = to_attribute(value)

    return harm


def raising(module: Module) -> None:
    raise ZeroDivisionError("by nothing")


BROKEN: dict[str, tuple[Callable[[Module], None], Breakage, str]] = {
    "another reduction": (setting("reduce", "min"), Breakage.VALUES, ""),
    "another axis": (setting("axes", ["dp"]), Breakage.VALUES, "E0659"),
    "an axis that is not there": (setting("axes", ["pp"]), Breakage.INVALID, "E0505"),
    "an exception": (raising, Breakage.FAILED, "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_pass_that_breaks_a_module_is_named_with_the_way_in_which_it_does(case: str) -> None:
    harm, breakage, code = BROKEN[case]
    found = bisect(Module.parse(MODULE), ["cse,canonicalize", Harm(harm), StartCollectives()])
    assert (found.pass_name, found.index, found.breakage) == ("do-harm", 2, breakage)
    assert found.broken is not None and found.broken.code == code and found.broken.lines
    assert found.passes == ("cse", "canonicalize", "do-harm", "start-collectives")


def test_passes_that_keep_a_module_are_not_named() -> None:
    found = bisect(Module.parse(MODULE), ["cse", Harm()], Terms(seed=3))
    assert (found.broken, found.pass_name, found.breakage) == (None, None, None)
