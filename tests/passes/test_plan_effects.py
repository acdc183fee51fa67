"""A statement of a plan that changes nothing is warned about at its line; one that changes anything is not."""

from __future__ import annotations

import re

import pytest
from stretto.dsl import Plan
from stretto.ir.module import Module
from stretto.passes.base import Remark, RemarkKind
from stretto.passes.manager import PassManager
from stretto.passes.pipeline_text import parse_pipeline
from stretto.passes.plan_effects import void_statements
from stretto.passes.sharding.choose_attention import ChooseAttention
from stretto.passes.sharding.place_arguments import PlaceArguments

MODEL = """
func.func @main(
  %w: tensor<8x8xf32> {aten.argument = {index = -1, kind = "parameter", name = "up.weight", owner = "linear"}},
  %b: tensor<8xf32> {aten.argument = {index = -1, kind = "parameter", name = "up.bias", owner = "linear"}},
  %v: tensor<8x8xf32> {aten.argument = {index = -1, kind = "parameter", name = "down.weight", owner = "linear"}},
  %x: tensor<4x6x8xf32> {aten.argument = {index = 0, kind = "input", name = "x"}},
  %s: tensor<3xf32> {aten.argument = {index = 1, kind = "input", name = "scale"}}) -> tensor<24x8xf32> {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 24, 8>} : (tensor<4x6x8xf32>) -> tensor<24x8xf32>
  %1 = "aten.t_default"(%w) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %2 = "aten.mm_default"(%0, %1) : (tensor<24x8xf32>, tensor<8x8xf32>) -> tensor<24x8xf32>
  %3 = "aten.t_default"(%v) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %4 = "aten.mm_default"(%2, %3) : (tensor<24x8xf32>, tensor<8x8xf32>) -> tensor<24x8xf32>
  %5 = "aten.reshape_default"(%4) {shape = array<i64: 4, 6, 8>} : (tensor<24x8xf32>) -> tensor<4x6x8xf32>
  %6 = "aten.relu_default"(%5) : (tensor<4x6x8xf32>) -> tensor<4x6x8xf32>
  %7 = "aten.reshape_default"(%6) {shape = array<i64: 24, 8>} : (tensor<4x6x8xf32>) -> tensor<24x8xf32>
  return %7 : tensor<24x8xf32>
}
"""


def warnings_of(plan: str) -> list[Remark]:
    """The warnings for a plan, of its statements and of its mesh."""
    parsed = Plan.parse(plan, "a.plan")
    steps = [PlaceArguments(parsed), ChooseAttention(parsed), *parse_pipeline("propagate-placements")]
    manager = PassManager(steps)
    remarks = manager.run(Module.parse(MODEL))
    remarks += void_statements(parsed, [(run.name, run.report.effects) for run in manager.runs])
    return [remark for remark in remarks if remark.kind is RemarkKind.WARNING]


MESH = "mesh (tp=2, ep=1)\n"
COLUMNS = 'shard "up" columns over tp\n'
ROWS = 'shard "down" rows over tp\n'


@pytest.mark.parametrize(
    ("plan", "line", "why"),
    [
        (
            COLUMNS + 'shard "*.weight", "*.bias" dim 0 over tp',
            2,
            "later statements decide (.*) .line 3",
        ),
        (COLUMNS + COLUMNS, 2, "later statements decide"),
        (COLUMNS + 'shard "down" rows over ep', 3, 'axis "ep" has one rank'),
        ('shard "down" rows over tp\nshard "up.bias" rows over tp', 3, "has no rows and stays whole"),
        (COLUMNS + "shard inputs batch over ep", 3, 'axis "ep" has one rank'),
        (COLUMNS + "shard activations tokens over ep", 3, 'axis "ep" has one rank'),
        ('shard "down" columns over tp\nshard activations tokens over tp', 3, "no sum of shape .4, 6, ...."),
    ],
)
def test_a_statement_without_effect_is_warned_about_at_its_line(plan: str, line: int, why: str) -> None:
    (warning,) = warnings_of(MESH + plan)
    assert warning.span is not None and (warning.span.file, warning.span.line) == ("a.plan", line)
    assert warning.message.startswith("this statement has no effect: ")
    assert re.search(why, warning.message)


@pytest.mark.parametrize(
    "plan",
    [
        COLUMNS + ROWS,
        COLUMNS + 'shard "up.bias" rows over tp',
        COLUMNS + 'shard "up.bias" columns over ep',
        COLUMNS + "shard inputs batch over ep, tp",
        COLUMNS + ROWS + "shard activations tokens over tp",
    ],
)
def test_a_statement_that_changes_anything_is_not(plan: str) -> None:
    assert warnings_of(MESH + plan) == []


def test_an_axis_that_cuts_nothing_is_warned_about_where_the_mesh_names_it() -> None:
    (warning,) = warnings_of("mesh (tp=2, idle=3)\n" + COLUMNS)
    assert 'axis "idle" of the mesh cuts nothing' in warning.message
    assert warning.span is not None and (warning.span.line, warning.span.column) == (1, 13)
    assert str(warning).endswith("(a.plan:1:13)")


def test_an_input_without_the_batch_is_said_to_stay_whole() -> None:
    report = PlaceArguments(Plan.parse("mesh (dp=2)")).run(Module.parse(MODEL))
    (missed,) = [remark for remark in report.remarks if remark.kind is RemarkKind.MISSED]
    assert missed.message.endswith('stay whole on every rank: "scale"')


def test_what_cut_something_says_how_much() -> None:
    plan = Plan.parse(f"mesh (tp=2, dp=2)\n{COLUMNS}shard inputs batch over dp")
    report = PlaceArguments(plan).run(Module.parse(MODEL))
    applied = [remark.message for remark in report.remarks if remark.kind is RemarkKind.APPLIED]
    assert applied == ["2 parameters cut over tp", "1 input cut over dp"]


SCHEDULE = "schedule mine(stages p, microbatches m) { stage s { drain { F B } } }\n"


def test_a_schedule_that_no_pipeline_names_is_warned_about_and_the_stages_axis_is_not() -> None:
    pipeline = "mesh (pp=2)\npipeline over pp { microbatches 2 schedule %s }\n" + SCHEDULE
    assert [remark.message for remark in warnings_of(pipeline % "mine")] == []
    (warning,) = warnings_of(pipeline % "1f1b")
    assert warning.message == "this statement has no effect: no pipeline names this schedule"
    assert str(warning.span) == "a.plan:3:1"


def test_what_zero_does_not_cut_over_all_of_its_axes_is_listed_with_the_reason() -> None:
    text = "mesh (node=3, ep=2)\nshard inputs dim 1 over node, ep\n{}zero 3 over node, ep {{ {}from 1B }}"
    remarks = {
        rest: [r.message for r in PlaceArguments(Plan.parse(text.format(*rest))).run(Module.parse(MODEL)).remarks
               if r.kind is RemarkKind.MISSED]
        for rest in (('shard "up" dim 0 over ep\n', ""), ("", "within ep  "))
    }  # fmt: skip
    cut, within = remarks.values()
    assert cut == ['not cut over ep: "up.weight", "up.bias" (cut over ep already)']
    assert len(within) == 1 and within[0].startswith("not cut over node: ")
    assert within[0].endswith("(the ranks of all axes together divide no dim)")


def test_a_zero_statement_that_cuts_nothing_is_warned_about() -> None:
    [small] = warnings_of("mesh (dp=2)\nzero 3 over dp { from 1MB }")
    assert "what it matches is cut over its axes already, or too small for it" in small.message
    [override] = warnings_of('mesh (dp=2)\nzero 3 over dp { only "up" }\nzero 1 over dp')
    assert "later statements decide for everything that it matches" in override.message
    assert warnings_of("mesh (dp=2)\nzero 3 over dp") == []


def test_a_method_that_no_attention_obeys_is_warned_about() -> None:
    [warning] = warnings_of("mesh (cp=2)\nshard inputs dim 1 over cp\nattention over cp { method gather }")
    assert warning.message == "this statement has no effect: it cuts the tokens of no attention"
    assert warning.span is not None and warning.span.line == 3


def test_a_store_statement_that_later_ones_override_is_warned_about() -> None:
    [warning] = warnings_of('mesh (dp=2)\nstore "up" dim 0 over dp\nstore "*" dim 0 over dp')
    assert "later statements decide for everything that it matches" in warning.message
    assert warning.span is not None and warning.span.line == 2
    assert warnings_of('mesh (dp=2)\nstore "*" dim 0 over dp\nstore "up" dim 0 over dp') == []


def test_a_name_of_axes_that_no_statement_uses_is_warned_about() -> None:
    [warning] = warnings_of(f"mesh (dp=2, tp=2)\naxes all = dp, tp\n{COLUMNS}{ROWS}")
    assert warning.message == "this statement has no effect: no statement uses the name"
    assert warnings_of('mesh (dp=2, tp=2)\naxes all = dp, tp\nstore "*" dim 0 over all') == []
    assert warnings_of(f"mesh (a=2, b=2, tp=2)\naxes dp = a, b\n{COLUMNS}{ROWS}") == []
