"""`explain` and `diff` of pipeline programs: the parameters, tasks and sends of each stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stretto.backends.program.lower_program import lower_program
from stretto.driver.ir_files.module_source import Source
from stretto.driver.report.explain import Explanation, explain
from stretto.driver.report.module_summary import module_summary
from stretto.driver.report.show_explanation import show_explanation
from stretto.driver.report.stages import Sends
from stretto.driver.report.traffic import SEND, traffic_of
from stretto.passes.manager import PassManager
from stretto.passes.overlap.hoist_collectives import HoistCollectives
from stretto.passes.overlap.start_collectives import StartCollectives
from stretto.runtime import Program, ProgramError
from stretto.runtime.program.program import Manifest

from ...ir.interpreter.staged import in_order, in_segments


@pytest.fixture(scope="module")
def program() -> Program:
    """The step of two stages and two microbatches, on (dp=2, pp=2)."""
    module = in_order()
    PassManager([HoistCollectives(), StartCollectives()]).run(module)
    lowered = lower_program(module)
    parts = (lowered.inputs, lowered.outputs, lowered.functions, lowered.locations)
    manifest = Manifest(mode="train", dtype="float32", mesh=lowered.mesh)
    return Program(manifest, *parts, pipeline=lowered.pipeline, types=lowered.types).validated


@pytest.fixture(scope="module")
def explanation(program: Program) -> Explanation:
    return explain(program)


def test_each_stage_has_its_parameters_its_tasks_and_what_it_sends(explanation: Explanation) -> None:
    first, second = explanation.stages
    assert (first.parameters, first.parameter_bytes) == (1, 64)
    assert first.tasks == (("forward_0", 2), ("backward_0", 2))
    assert first.sends == (Sends(to=1, count=2, bytes=2 * 32),)
    assert second.tasks == (("forward_1", 2), ("input_gradient_1", 2), ("weight_gradient_1", 2))
    assert second.sends == (Sends(to=0, count=3, bytes=2 * 32 + 4),)


def test_what_depends_on_the_tangent_through_messages_is_of_the_backward(program: Program) -> None:
    traffic = traffic_of(program)
    sent = sorted((site.stage, site.backward, count) for site, count in traffic.items() if site.kind == SEND)
    assert sent == [(0, False, 1), (0, False, 1), (1, False, 1), (1, True, 1), (1, True, 1)]
    sums = sorted((site.stage, site.backward, site.sent_bytes) for site in traffic if site.kind == "all_reduce")
    assert sums == [(0, True, 64), (1, False, 4), (1, True, 64)]


def test_sums_of_gradients_name_their_parameters_at_each_stage(explanation: Explanation) -> None:
    rows = [(entry.stage, entry.kind, entry.gradients) for entry in explanation.communication if entry.gradients]
    assert rows == [(0, "all_reduce", ("w0",)), (1, "all_reduce", ("w1",))]
    assert ("send", ("pp",), 5, 4 * 32 + 4) in explanation.totals


def test_the_text_has_a_table_of_stages(explanation: Explanation, capsys: pytest.CaptureFixture[str]) -> None:
    show_explanation(explanation)
    out = capsys.readouterr().out
    assert "Stages over pp, microbatches: 2" in out
    assert "1: 2 x forward_1, input_gradient_1, weight_gradient_1" in out
    assert "3 to 0, 68 B" in out and "64 B on a rank of the largest stage" in out
    assert "sent by one rank of each stage together" in out


def test_json_has_the_stages_of_all_tensors_and_communication(explanation: Explanation) -> None:
    report = explanation.to_json()
    assert report["pipeline"] == {"axis": "pp", "entries": ["main_0", "main_1"], "microbatches": 2}
    assert [parameter["stages"] for parameter in report["parameters"]] == [[0], [1]]  # type: ignore[union-attr, index, call-overload]
    assert {entry["stage"] for entry in report["communication"]} == {0, 1}  # type: ignore[union-attr, index, call-overload]


def test_stages_that_wait_for_ever_are_an_error_of_the_program(program: Program) -> None:
    entry = program.functions["main_1"]
    unsent = tuple(instruction for instruction in entry.code if instruction.op != "comm.send")
    broken = replace(program, functions={**program.functions, "main_1": replace(entry, code=unsent)})
    with pytest.raises(ProgramError, match="its stages deadlock"):
        traffic_of(broken)


def test_a_module_in_order_is_summed_over_its_stages_beside_one_in_segments() -> None:
    before, after = (module_summary(Source(m.text(), "<module>", None)) for m in (in_segments(), in_order()))
    assert (before.stages, after.stages) == (1, 2)
    assert (before.ops["aten.mm.default"], after.ops["aten.mm.default"]) == (5, 10)
    sends = after.communication["send", ("pp",)]
    assert (sends.count, sends.sent_bytes) == (5, 4 * 32 + 4)
    assert ("all_reduce", ("dp", "microbatch")) in before.communication
