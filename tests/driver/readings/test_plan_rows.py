"""What a program says of itself is compared with the text of its plan, without the code that reads plans."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from stretto.driver.compile import compile_target
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.driver.readings import plan_rows
from stretto.driver.readings.attention_rows import attention_facts
from stretto.driver.readings.parameter_cuts import cuts_of_buffer
from stretto.driver.readings.plan_text import INPUTS, PlanText
from stretto.dsl import resolve_values
from stretto.dsl.plan import Plan
from stretto.dsl.precision import Precision
from stretto.dsl.shard import Role
from stretto.frontend.capture.call import bind_call
from stretto.frontend.captured import Mode
from stretto.runtime.program.records import Input
from torch import Tensor, nn

from ...end_to_end.checking import compiled_model
from ...end_to_end.test_token_sharding import GroupedAttention
from ...subsets import only


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor, table: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return ((x - y).square().mean() + (x @ table.t()).logsumexp(-1).mean()).sqrt()


PIPELINE = "pipeline over pp { microbatches 2  per microbatch }"
PLANS = (
    'mesh (a=2, b=2)\nshard inputs "x", "y" batch over b  # "x" whole\nshard inputs "table" dim -1 over a',
    "mesh (a=2, b=2, one=1)\nshard inputs dim 1 over b, a\nshard inputs batch over one",
    'mesh (dp=2,\n  tp=2)\nshard inputs "tab*" whole\nprecision {\n compute bf16\n}',
    "mesh (dp=2)\nprecision { params fp32  compute bf16  reduce fp32 }",
    "mesh (dp=2)\nprecision { reduce bf16 }",
    'mesh (r=2, cp=2)\naxes dp = r, cp\nshard inputs "x", "y" batch',
    f'mesh (pp=2)\nshard inputs "*" batch\nshard inputs "table" whole\n{PIPELINE}',
    f'mesh (pp=2, dp=2)\nshard inputs "table" whole\n{PIPELINE}',
    'mesh (pp=2)\nshard inputs "table" whole\npipeline over pp {\n  schedule gpipe  microbatches 4\n'
    '  split "layers.1"\n  per microbatch\n}',
    "mesh (dp=2)\nzero 2 over dp { reduce bf16 }",
)


def rows(text: str) -> list[str]:
    torch.manual_seed(0)
    model = Net()
    call = bind_call(model, (torch.randn(8, 8), torch.randn(8, 8), torch.randn(8, 8)), {})
    parsed = Plan.parse(text)
    options = Options(mode=Mode.TRAIN, source=compile_target._compute(parsed))
    program = compile_program(CompileRequest(model, call, parsed, options)).program
    return [f"{row.name}: {row.note}" for row in plan_rows.rows_of_plan(program, text, model)]


@pytest.mark.parametrize("plan", only([PLANS[0], PLANS[2], PLANS[6]], PLANS))
def test_a_program_that_is_what_its_plan_says_has_no_row(plan: str) -> None:
    assert rows(plan) == []


def first_role(plan: Plan, name: str) -> Any:
    return next((s.layout for s in plan.inputs if isinstance(s.layout, Role) and s.covers(name)), None)


def reduced_as_computed(plan: Plan) -> Precision | None:
    stated = PRECISION(plan)
    return stated and replace(stated, reduce=stated.reduce or stated.compute)


def not_computed(plan: Plan) -> Precision | None:
    stated = PRECISION(plan)
    return stated and replace(stated, compute=None)


PRECISION = Plan.precision.fget  # type: ignore[attr-defined]
DIMS = resolve_values.resolve_inputs
FAULTS: dict[str, tuple[object, str, Any, str, str]] = {
    "the first statement decides what is the batch": (
        resolve_values, "stated_role", first_role, PLANS[6],
        "table: the program cuts it into microbatches; by the plan it is whole in each",
    ),
    "an input that is stated whole is the batch for its rows": (
        resolve_values, "batch_inputs", lambda plan, shapes: tuple(shapes), PLANS[7],
        "table: the program has it dim 0 over dp; the plan says whole on every rank",
    ),
    "a reduce that is left out is compute": (
        Plan, "precision", property(reduced_as_computed), PLANS[2],
        "precision reduce: the program has bfloat16; the plan says own",
    ),
    "compute is not read": (
        Plan, "precision", property(not_computed), PLANS[3],
        "precision compute: the program has None; the plan says bfloat16",
    ),
    "the format that zero reduces in is not read": (
        Plan, "stored_reduce", None, PLANS[-1], "zero reduce: the program has None; the plan says bfloat16",
    ),
    "axes of inputs nest in the mesh's order": (
        resolve_values, "resolve_inputs",
        lambda *args: {name: dict(sorted(dims.items())) for name, dims in DIMS(*args).items()}, PLANS[1],
        "x: the program has it dim 1 over a, b; the plan says dim 1 over b, a",
    ),
}  # fmt: skip
"""By meaning: a function, what replaces it, a plan, and a row that shows it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_statement_that_is_read_wrongly_has_a_row(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong, plan, row = FAULTS[fault]
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, wrong)
    for module in [*sys.modules.values()]:
        if getattr(module, "__name__", "").startswith("stretto.") and getattr(module, name, None) is right:
            monkeypatch.setattr(module, name, wrong)
    assert row in rows(plan)


def test_items_of_a_pipeline_have_their_values() -> None:
    text = 'mesh (pp=2)\npipeline over pp { times 1, 2.5, 1e-3\n per microbatch split "a",\n "b" microbatches 8 }'
    assert PlanText.of(text).pipeline == {
        "over": ["pp"], "times": ["1", "2.5", "1e-3"], "per": ["microbatch"], "split": ['"a"', '"b"'],
        "microbatches": ["8"],
    }  # fmt: skip


def test_zero_and_buffers_are_read() -> None:
    plan = PlanText.of('mesh (dp=2)\nzero 3 over dp {\n only "a", "b"  from 4KB }\nshard buffers "k" dim 1 over dp')
    [zero], [buffers] = plan.shardings("stored"), plan.shardings("buffers")
    assert (zero.patterns, zero.axes, zero.least_bytes) == (("a", "b"), ("dp",), 4000)
    assert (buffers.patterns, buffers.number, buffers.axes) == (("k",), 1, ("dp",))


def test_statements_about_a_buffer_add_up() -> None:
    statements = 'dim 0 over cp, tp\nshard buffers "k" dim 1 over tp\nshard buffers "k" dim 0 over one, dp'
    plan = PlanText.of(f'mesh (dp=2, tp=2, cp=2, one=1)\nshard buffers "k" {statements}')
    buffer = Input("k", "buffer", (8, 4), "float32", 0)
    assert cuts_of_buffer(plan, buffer) == {0: ("cp", "dp"), 1: ("tp",)}


def test_experts_are_read() -> None:
    plan = PlanText.of('mesh (a=2, b=2)\naxes ep = b, a\nexperts "x.*",\n "y" over ep { capacity none\n bound 1.5 }')
    [experts] = plan.shardings("experts")
    assert (experts.patterns, experts.role, experts.number, experts.axes) == (("x.*", "y"), "dim", 0, ("b", "a"))


def test_a_written_schedule_is_passed_over() -> None:
    text = "schedule a(stages p, microbatches m) {\n  stage s {\n steady m { F B }\n }\n}\nmesh (dp=2)"
    plan = PlanText.of(text)
    assert plan.mesh == (("dp", 2),) and [each.axes for each in plan.shardings(INPUTS)] == [("dp",)]


def test_methods_of_attention_are_read_and_compared() -> None:
    plan = PlanText.of("mesh (a=2, b=2)\naxes cp = b, a\nattention over cp {\n method gather }")
    assert plan.attention == [(("b", "a"), "gather")]
    text = "mesh (cp=2)\nshard inputs dim 1 over cp\nattention over cp { method all_to_all }"
    program = compiled_model(GroupedAttention(4, 2), {"x": torch.zeros(2, 8, 16)}, text, loss_only=True).program
    assert [*attention_facts(program, PlanText.of(text))] == [("attention over cp", "all_to_all", "all_to_all")]
    other = PlanText.of(text.replace("all_to_all", "gather"))
    assert [*attention_facts(program, other)] == [("attention over cp", "no all_gather", "all_gather")]
    both = PlanText.of("mesh (a=2, cp=2)\nattention over a, cp { method ring_all_to_all }")
    assert [*attention_facts(program, both)] == [
        ("attention over a", "no permute", "permute"), ("attention over cp", "all_to_all", "all_to_all")
    ]  # fmt: skip
