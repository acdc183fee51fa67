"""Bisection of pipelined modules: passes are checked on all stages together, and faults are localised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from stretto.driver.check.pass_check import Breakage, CheckOptions
from stretto.driver.check.verify_passes import PassesJob, verify_passes
from stretto.driver.debug.bisect import Bisection, bisect
from stretto.driver.debug.fault_localisation import Status
from stretto.driver.debug.faulty_op import FaultyOp
from stretto.driver.debug.reduce import reduce_module
from stretto.driver.ir_files.module_source import Source
from stretto.ir.module import Module, argument_records
from stretto.ir.pipelined_module import entries
from stretto.ir.verifier import verify
from stretto.passes.base import Pass, Report
from stretto.passes.manager import Step
from stretto.passes.overlap.hoist_collectives import HoistCollectives
from stretto.passes.overlap.start_collectives import StartCollectives

from ...ir.interpreter.staged import FIRST, PART, SECOND, SEGMENTS, captured, in_order, in_segments, receive, send
from ...ir.interpreter.texts import at


@dataclass(frozen=True)
class Become(Pass):
    """Leaves the module of a text, whatever it is given."""

    name: ClassVar[str] = "order-tasks"
    text: str = field(default="", repr=False)

    def run(self, module: Module) -> Report:
        module.become(Module.parse(self.text))
        return Report(1)


def ordered(first: list[str] = FIRST, second: list[str] = SECOND, segments: str = SEGMENTS) -> Bisection:
    """What is found of a pass that leaves these entries."""
    return bisect(in_segments(), [Become(in_order(first, second, segments).text())], CheckOptions())


def faulty_op(bisection: Bisection) -> FaultyOp:
    assert bisection.op is not None
    return bisection.op


def test_passes_from_the_capture_to_started_receives_are_judged_equal() -> None:
    steps: list[Step] = [
        Become(in_segments().text()),
        Become(in_order().text()),
        HoistCollectives(),
        StartCollectives(),
    ]
    assert bisect(captured(), steps).broken is None


def test_tensors_that_cross_in_the_wrong_order_are_found_where_they_are_used() -> None:
    first = [line for line in FIRST if line != send("h0", 1)]
    place = first.index(send("h1", 1)) + 1
    bisection = ordered([*first[:place], send("h0", 1), *first[place:]])
    assert bisection.breakage is Breakage.VALUES and bisection.broken is not None
    assert [result.name for result in bisection.broken.differing] == ["gradient w0"]
    op = faulty_op(bisection)
    assert (op.place.op, op.place.function) == ("aten.mm_default", "forward_1")
    assert [operand.status for operand in op.operands] == [Status.RIGHT, Status.RIGHT]
    assert op.operands[0].made_by.startswith('"comm.receive"')
    assert any("operand 0 is of" in why for why in op.why)


def test_a_microbatch_whose_gradient_is_added_twice_is_found_at_the_sum() -> None:
    bisection = ordered([line.replace("(%g0_0, %g0_1)", "(%g0_0, %g0_0)") for line in FIRST])
    assert bisection.breakage is Breakage.VALUES
    assert (faulty_op(bisection).place.op, faulty_op(bisection).place.function) == ("aten.add_tensor", "main_0")


def test_a_call_of_the_wrong_microbatch_is_found_where_its_result_is_read() -> None:
    own = '{axes = ["dp", "microbatch"], dim = 0 : i64, chunk = 2 : i64, extent = 7 : i64, fill = 0.0 : f64}'
    masked = f'%h = "comm.mask"(%m) {own} : ({PART}) -> {PART}'
    segments = SEGMENTS.replace('%h = "aten.mm_default"', '%m = "aten.mm_default"')
    segments = segments.replace("return %h :", f"{masked} {at('mask', 99)}\nreturn %h :")
    assert bisect(in_segments(segments), [Become(in_order(segments=segments).text())]).broken is None
    first = [line.replace("microbatch = 1", "microbatch = 0") for line in FIRST]
    bisection = bisect(in_segments(segments), [Become(in_order(first, segments=segments).text())])
    assert bisection.breakage is Breakage.VALUES
    assert (faulty_op(bisection).place.op, faulty_op(bisection).place.function) == ("aten.mm_default", "forward_1")
    assert faulty_op(bisection).why == (
        'operand 0 is of "comm.receive" in @main_1, and was of "comm.mask" (model.py:99, mask)',
    )


def test_a_stage_that_waits_for_ever_breaks_the_order() -> None:
    bisection = ordered([f"%early = {receive(1)}", *FIRST])
    assert bisection.breakage is Breakage.ORDER and bisection.broken is not None
    assert [(rank.rank, rank.op) for rank in bisection.broken.stuck][:2] == [(0, "comm.receive"), (1, "comm.receive")]


def test_a_tensor_that_nobody_takes_is_refused_with_its_place() -> None:
    bisection = ordered([*FIRST[:-1], send("h0", 1), FIRST[-1]])
    assert bisection.breakage is Breakage.REFUSED and bisection.broken is not None and bisection.broken.code == "E0663"


def test_an_entry_that_is_missing_is_invalid() -> None:
    text = in_order().text().replace("@main_1", "@other")
    assert bisect(in_segments(), [Become(text)]).breakage is Breakage.INVALID


@dataclass(frozen=True)
class TakeMaxima(Pass):
    """Makes maxima of all sums over data-parallel ranks."""

    name: ClassVar[str] = "take-maxima"

    def run(self, module: Module) -> Report:
        text = module.text().replace('reduce = "sum"', 'reduce = "max"')
        module.become(Module.parse(text))
        return Report(1)


def test_a_module_in_order_is_reduced_with_the_sends_that_nothing_needs() -> None:
    reduced = reduce_module(in_order(), [HoistCollectives(), TakeMaxima()], CheckOptions(), seconds=60.0)
    assert reduced.pass_name == "take-maxima" and reduced.is_done
    assert reduced.before > 30 and reduced.after < 12
    left = Module.parse(reduced.text)
    verify(left)
    assert set(left.functions()) >= {"main_0", "main_1"} and reduced.text.count("comm.send") < 3
    records = [record for function in entries(left) for record in argument_records(function)]
    assert len({record["name"] for record in records}) == len(records)
    assert bisect(left, [TakeMaxima()]).breakage is Breakage.VALUES


def test_every_pass_on_a_module_in_order_is_verified() -> None:
    steps = "hoist-collectives,start-collectives{tasks-ahead=2}"
    report = verify_passes(PassesJob(Source(in_order().text(), "<module>", steps)))
    assert report.passed and [verdict.name for verdict in report.verdicts] == [
        "hoist-collectives", "start-collectives", "lower to program"
    ]  # fmt: skip
