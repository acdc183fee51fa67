"""`bisect`: the first pass that breaks a module, in which way, and at which operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
from stretto.driver.check import pass_check as judge
from stretto.driver.check.pass_check import Breakage, CheckOptions
from stretto.driver.debug.bisect import bisect
from stretto.driver.debug.fault_localisation import Status
from stretto.ir.attributes import to_attribute
from stretto.ir.bindings import Operation, mlir
from stretto.ir.dialects.context import context
from stretto.ir.equivalence.compare import Comparison
from stretto.ir.interpreter import DeadlockError, Stuck
from stretto.ir.interpreter.errors import DEADLOCK
from stretto.ir.locations import Origin
from stretto.ir.module import Module, entry, operations, terminator
from stretto.ir.source_text import without_locations
from stretto.passes.base import Pass, Report
from stretto.passes.overlap.start_collectives import StartCollectives

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
    bisection = bisect(Module.parse(MODULE), ["cse,canonicalize", Harm(harm), StartCollectives()])
    assert (bisection.pass_name, bisection.index, bisection.breakage) == ("do-harm", 2, breakage)
    assert bisection.broken is not None and bisection.broken.code == code and bisection.broken.lines
    assert bisection.passes == ("cse", "canonicalize", "do-harm", "start-collectives")


def test_passes_that_keep_a_module_are_not_named() -> None:
    bisection = bisect(Module.parse(MODULE), ["cse", Harm()], CheckOptions(seed=3))
    assert (bisection.broken, bisection.pass_name, bisection.breakage) == (None, None, None)


TWO = """module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func private @layer(%x: tensor<4xf32>, %w: tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32> {
  %0 = "comm.all_reduce_start"(%w) {axes = ["tp"], reduce = "sum"}
    : (tensor<4xf32, {tp = "partial(sum)"}>) -> !async.value<tensor<4xf32>> loc(fused["layers.*", "model.py":7:0])
  %1 = "aten.sin_default"(%x) : (tensor<4xf32>) -> tensor<4xf32> loc(fused["layers.*", "model.py":8:0])
  %2 = "comm.wait"(%0) : (!async.value<tensor<4xf32>>) -> tensor<4xf32> loc(fused["layers.*", "model.py":7:0])
  %3 = "aten.sub_tensor"(%1, %2) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    loc(fused["layers.*", "model.py":9:0])
  return %3 : tensor<4xf32>
}
func.func @main(%x: tensor<4xf32>, %w: tensor<4xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = call @layer(%x, %w) : (tensor<4xf32>, tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = call @layer(%0, %w) : (tensor<4xf32>, tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %2 = "aten.exp_default"(%1) : (tensor<4xf32>) -> tensor<4xf32> loc(fused["head", "model.py":12:0])
  return %2, %1 : tensor<4xf32>, tensor<4xf32>
}
}
"""
"""Two calls of a folded layer with an asynchronous collective in it."""


def named(module: Module, name: str) -> Operation:
    """The one operation of a name."""
    [result] = [op for f in module.functions().values() for op in operations(f) if op.operation.name == name]
    return result


def maximum(module: Module) -> None:
    named(module, "comm.all_reduce_start").attributes["reduce"] = to_attribute("min")


def swapped(module: Module) -> None:
    op = named(module, "aten.sub_tensor")
    first, second = op.operands
    op.operands[0], op.operands[1] = second, first


def unreduced(module: Module) -> None:
    op = named(module, "aten.sub_tensor")
    op.operands[1] = entry(module.functions()["layer"]).arguments[1]


def returned_wrongly(module: Module) -> None:
    op = terminator(module.functions()["main"])
    first, second = op.operands
    op.operands[0], op.operands[1] = second, first


def negated(module: Module) -> None:
    op = named(module, "aten.exp_default")
    with context(), op.location, mlir.InsertionPoint(op):
        negation = mlir.Operation.create("aten.neg_default", results=[op.operands[0].type], operands=[op.operands[0]])
    op.operands[0] = negation.results[0]


GUILTY: dict[str, tuple[Callable[[Module], None], str, str, int, str]] = {
    "a wrong reduction": (maximum, "comm.all_reduce_start", "layer", 7, "reduce is min, and was sum"),
    "swapped operands": (swapped, "aten.sub_tensor", "layer", 9, "operand 0 is of"),
    "a reduction left out": (unreduced, "aten.sub_tensor", "layer", 9, "ranks hold the same values"),
    "swapped results": (returned_wrongly, "func.return", "main", 0, "returned in place of another"),
    "one operation too many": (negated, "aten.neg_default", "main", 12, "no such operation for this line"),
}


@pytest.mark.parametrize("case", GUILTY)
def test_the_operation_that_breaks_values_is_named_with_its_line_and_what_shows_it(case: str) -> None:
    harm, name, function, line, why = GUILTY[case]
    op = bisect(Module.parse(TWO), ["cse", Harm(harm)]).op
    assert op is not None
    place = op.place
    assert (place.op, place.function, place.origin.line) == (name, function, line)
    assert any(why in reason for reason in op.why), op.why
    assert f'"{name}"' in place.text or name == "func.return"


TOTAL = """module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<2xf32, {tp = "shard(0)"}>) -> tensor<f32> {
  %0 = "comm.all_gather"(%x) {axes = ["tp"], dim = 0 : i64}
    : (tensor<2xf32, {tp = "shard(0)"}>) -> tensor<4xf32> loc(fused["head", "model.py":7:0])
  %1 = "aten.sum_default"(%0) : (tensor<4xf32>) -> tensor<f32> loc(fused["head", "model.py":7:0])
  %2 = "aten.exp_default"(%1) : (tensor<f32>) -> tensor<f32> loc(fused["head", "model.py":8:0])
  return %2 : tensor<f32>
}
}
"""


def own_total(module: Module) -> None:
    total = named(module, "aten.sum_default")
    [chunk] = entry(module.functions()["main"]).arguments
    attributes = {"dim": to_attribute([0]), "keepdim": to_attribute(False)}
    with context(), total.location, mlir.InsertionPoint(total):
        own = mlir.Operation.create("aten.sum_dim_intlist", [total.result.type], [chunk], attributes)
    total.result.replace_all_uses_with(own.result)
    total.erase()


def test_of_an_operation_written_in_anothers_place_the_one_that_leaves_out_a_reduction_is_named() -> None:
    op = bisect(Module.parse(TOTAL), ["cse", Harm(own_total)]).op
    assert op is not None and (op.place.op, op.place.origin.line) == ("aten.sum_dim_intlist", 7)
    assert "ranks hold the same values of the result, but they differ" in " ".join(op.why)


def test_the_line_of_the_module_and_the_operands_are_reported() -> None:
    module = Module.parse(TWO)
    op = bisect(module, [Harm(unreduced)]).op
    assert op is not None and op.place.text in without_locations(module.text()).splitlines()[op.place.line - 1]
    assert [operand.status for operand in op.operands] == [Status.RIGHT, Status.RIGHT]
    assert op.operands[1].type == 'tensor<4xf32, {tp = "partial(sum)"}>' and op.operands[1].made_by == "argument 1"


def test_a_pass_that_leaves_a_module_which_cannot_be_run_has_the_operation_where_it_stops() -> None:
    def harm(module: Module) -> None:
        named(module, "comm.wait").operands[0] = named(module, "aten.sin_default").results[0]

    bisection = bisect(Module.parse(TWO), [Harm(harm)])
    assert bisection.breakage is Breakage.INVALID or (bisection.op and bisection.op.place.op == "comm.wait")


def test_ranks_that_wait_for_each_other_are_named_with_their_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    module, ran = Module.parse(TWO), judge.compare
    origins = [Origin("layers.*", "model.py", line) for line in (7, 8)]
    places = tuple(Stuck(rank, "comm.all_reduce", origins[rank], (1 - rank,)) for rank in (0, 1))

    def compare(before: Module, after: Module, *args: object, **options: object) -> Comparison:
        if "-1" not in after.text():
            return ran(before, after, *args, **options)  # type: ignore[arg-type]
        raise DeadlockError(DEADLOCK, "ranks wait for each other for ever", places)

    monkeypatch.setattr(judge, "compare", compare)
    bisection = bisect(
        module, [Harm(lambda module: module.operation.attributes.__setitem__("comm.x", to_attribute(-1)))]
    )
    assert bisection.broken is not None and (bisection.breakage, bisection.op) == (Breakage.ORDER, None)
    assert bisection.broken.stuck == places and "rank 0 is in" in "".join(bisection.broken.message)
