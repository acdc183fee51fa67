"""`recompute`: values and gradients are those of one device, and the peak falls by what is not kept."""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest
import stretto
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import Compiled, CompileRequest, Options
from stretto.driver.readings.plan_rows import rows_of_plan
from stretto.driver.report.explain import explain
from stretto.driver.report.show_explanation import show_explanation
from stretto.dsl import Plan, PlanError
from stretto.frontend.to_ir import Floats
from stretto.passes.memory.regions import Regions
from stretto.runtime.checks.program_check import check
from stretto.runtime.program.program import Program
from stretto.runtime.prover import prove
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import some
from .checking import assert_equal, assert_report, compiled, compiled_model
from .models import MODELS, Case, Size, plan
from .traffic import kinds, messages

PIPELINES = ("microbatches 2", "microbatches 2  schedule zb-v", "microbatches 2  schedule zb-h1")
LINE = 'recompute "layers.*", "head"'
SIZE = {"vocab": 44, "width": 16, "heads": 4, "head": 4, "inner": 24, "seq": 8}


@cache
def _case(model: str = "gpt") -> Case:
    return MODELS[model](Size(batch=4, layers=2, **SIZE))


@cache
def _long() -> Case:
    """A GPT whose activations take more than its parameters; the peak is where the logits are."""
    return MODELS["gpt"](Size(batch=4, layers=2, **{**SIZE, "vocab": 200, "seq": 64}))


class Layer(nn.Module):
    """A residual feed-forward with dropout."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(8, 32), nn.Linear(32, 8), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.drop(F.gelu(self.up(x))))


class Net(nn.Module):
    """Equal layers, which fold, and a head of another kind; memory peaks behind them."""

    def __init__(self, drop: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(drop) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))
        self.wide = nn.Linear(4, 400)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.wide(self.head(x)).square().mean()


NET = Net()


@cache
def _net(line: str, mesh: str = "dp=2") -> Program:
    return compiled_model(NET, {"x": torch.zeros(64, 8)}, f"mesh ({mesh})\n{line}").program


def saved(program: Program) -> int:
    """The bytes that are kept no longer, as `explain` says."""
    return sum(int(re.findall(r"(-?\d+) fewer", message)[0]) for _, message in explain(program).recomputed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mesh", "lines"),
    [
        ("gpt", "dp=2, tp=2", 'zero 3 over dp\nrecompute "*.attention", gelu'),
        ("gpt", "dp=2", 'recompute "blocks.*"'),
        ("gpt", "dp=2", 'recompute "blocks.1", "blocks.0.attention"'),
        ("gpt", "dp=1", 'recompute "*"'),
        ("gpt", "dp=2, tp=2", 'shard activations tokens over tp\nrecompute "blocks.*" { collectives again }'),
        ("gpt", "dp=2, tp=2", 'shard activations tokens over tp\nrecompute "blocks.*"'),
        ("gpt", "dp=2", 'zero 1 over dp\nrecompute "blocks.*"'),
        ("llama", "dp=2", 'recompute "*.mlp", attention'),
        ("llama", "dp=1", "recompute rms_norm, silu, attention, cross_entropy, rotary"),
        ("llama", "dp=2, tp=2", 'zero 3 over dp\nrecompute "*.layers.*" { except attention }'),
        ("gpt2", "dp=2", 'zero 3 over dp\nrecompute "*.mlp", "*.attn"'),
        *(("gpt", "pp=2", f'pipeline over pp {{ {pipeline} }}\nrecompute "blocks.*"') for pipeline in PIPELINES),
        ("gpt", "pp=2, dp=2", f'pipeline over pp {{ {PIPELINES[1]} }}\nzero 3 over dp\nrecompute "*.attention", gelu'),
        ("gpt", "pp=2, tp=2", f'pipeline over pp {{ {PIPELINES[2]} }}\nrecompute "*" {{ collectives again }}'),
        ("llama", "pp=2", f'pipeline over pp {{ {PIPELINES[1]} }}\nrecompute "*.layers.*"'),
        ("llama", "pp=2, dp=2", f'pipeline over pp {{ {PIPELINES[0]} }}\nzero 2 over dp\nrecompute "*.mlp", attention'),
    ],
)  # fmt: skip
def test_a_model_trains_as_on_one_device(model: str, mesh: str, lines: str) -> None:
    text = plan(model, mesh, *lines.split("\n"))
    assert_equal(_case(model), text)
    program = compiled(_case(model), text).program
    assert prove(program).safe and saved(program) > 0
    assert rows_of_plan(program, text, _case(model).model) == []


def assert_peak_falls(kept: Program, again: Program) -> None:
    fall = prove(kept).peak_bytes - prove(again).peak_bytes
    assert fall == pytest.approx(saved(again), rel=0.02) and fall > 0


def test_the_peak_falls_by_the_bytes_that_are_not_kept() -> None:
    assert_peak_falls(_net(""), _net(LINE))


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    ['recompute "*.attention"', "recompute gelu", "recompute attention", "recompute layer_norm", 'recompute "*.1"'],
)
def test_the_peak_of_a_gpt_falls_by_the_bytes_that_are_not_kept(line: str) -> None:
    text = plan("gpt", "dp=2")
    assert_peak_falls(*(compiled(_long(), each).program for each in (text, f"{text}\n{line}")))


@pytest.mark.slow
def test_what_is_stored_is_gathered_for_the_backward_once() -> None:
    """Of each layer 16 parameters are gathered in both directions: the backward computes with all but one bias."""
    text = plan("gpt", "dp=2", "zero 3 over dp")
    once, again = (kinds(messages(compiled(_case(), each))) for each in (text, f'{text}\nrecompute "blocks.*"'))
    assert again["reduce_scatter"] == once["reduce_scatter"]
    biases = 2 * 2  # of a layer: those of queries, values and the first linear layer run again; not those of the last
    assert 0 < again["all_gather"] - once["all_gather"] <= 3 * biases


@pytest.mark.parametrize(
    "line", some(LINE, 'recompute "head" { except tanh }\nrecompute "*.drop", tanh', 'recompute "layers.1", linear')
)
def test_values_and_draws_are_those_of_one_device(line: str) -> None:
    torch.manual_seed(0)
    assert_report(check(_net(line)))
    assert prove(_net(line)).safe and saved(_net(line)) > 0
    assert rows_of_plan(_net(line), f"mesh (dp=2)\n{line}", NET) == []


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_draws_in_a_pipeline_are_those_of_one_device(pipeline: str) -> None:
    torch.manual_seed(0)
    program = _net(f"pipeline over pp {{ {pipeline} }}\n{LINE}", "pp=2, dp=2")
    assert_report(check(program))
    assert prove(program).safe and saved(program) > 0


@pytest.mark.slow
def test_the_peak_of_a_pipeline_falls_by_all_microbatches_in_flight() -> None:
    """1F1B holds two on the first of two stages; at the peak one of them runs again. A stage has half the layers."""
    text = plan("gpt", "pp=2", "pipeline over pp { microbatches 4 }")
    kept, again = (compiled(_long(), each).program for each in (text, f"{text}\nrecompute gelu"))
    fall = prove(kept).peak_bytes - prove(again).peak_bytes
    assert fall == pytest.approx((2 - 1) * saved(again) / 2, rel=0.02)


@pytest.mark.slow
def test_a_program_of_named_sizes_computes_again_at_every_size() -> None:
    plain = Net(0.0).double()
    model = stretto.compile(copy.deepcopy(plain), plan=f"mesh (dp=2)\n{LINE}", dynamic={"x": {0: "batch"}})
    for rows in (64, 48, 10):
        x = torch.randn(rows, 8, dtype=torch.float64)
        plain.zero_grad()
        model.zero_grad()
        (3 * plain(x)).backward()
        (3 * model(x)).backward()
        for (name, expected), found in zip(plain.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-12, msg=name)


def _fits(memory: int, floats: Floats) -> Compiled:
    text = f"mesh (dp=2)\nrecompute auto {{ memory {memory}B }}"
    options = Options(floats=floats, loss_only=False)
    request = CompileRequest.of(NET, (), {"x": torch.zeros(64, 8)}, Plan.parse(text), options)
    return compile_program(request)


def test_auto_takes_the_least_that_fits() -> None:
    found = _fits(480_000, Floats.FLOAT64)
    assert prove(_net("")).peak_bytes > 480_000 >= prove(found.program).peak_bytes
    [(_, chosen), *_] = explain(found.program).recomputed
    assert "the estimated peak is" in chosen
    torch.manual_seed(0)
    assert_report(check(found.program))


@pytest.mark.slow
def test_auto_refuses_what_cannot_fit_with_the_least_peak() -> None:
    with pytest.raises(PlanError) as refused:
        _fits(1000, Floats.AS_CAPTURED)
    assert refused.value.code == "E0136" and re.search(r"a rank needs \d+ bytes", refused.value.message)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1500, 1200, 900])
def test_auto_fits_a_gpt(memory: int) -> None:
    text = plan("gpt", "dp=2", f"recompute auto {{ memory {memory * 1000}B }}")
    case = MODELS["gpt"](Size(batch=4, layers=4, **{**SIZE, "vocab": 200, "seq": 64, "inner": 64}))
    program = compiled(case, text).program
    assert prove(program).peak_bytes <= memory * 1000
    assert_equal(case, text)


def test_explain_says_what_runs_again_and_a_plan_that_was_not_followed_is_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_explanation(explain(_net(LINE)))
    shown = capsys.readouterr().out
    assert re.search(rf"Computed again in the backward\n  {re.escape(LINE)}\n    the backward computes \d+", shown)
    rows = rows_of_plan(_net(""), f"mesh (dp=2)\n{LINE}", NET)
    assert {row.name for row in rows} == {"layers.0", "layers.1", "head"}


def test_a_recompute_that_saves_nothing_warns_with_the_bytes() -> None:
    [warning] = explain(_net('recompute "*.up"')).warnings
    kept = re.findall(
        r"it saves nothing: the backward keeps (\d+) bytes with it, (\d+) without", str(warning["message"])
    )
    assert len(kept) == 1 and kept[0][0] == kept[0][1] and int(kept[0][0]) > 0


@pytest.mark.parametrize(
    ("line", "message", "help"),
    [
        ('recompute "*.mpl"', 'the pattern "*.mpl" matches no module', 'did you mean "*.mlp"?'),
        ("recompute atention", 'no operation of the model is of the kind "atention"', 'did you mean "attention"?'),
        ('recompute "*" { except selu }', 'no operation of the model is of the kind "selu"', 'did you mean "gelu"?'),
    ],
)
def test_what_matches_nothing_is_refused_with_the_nearest(line: str, message: str, help: str) -> None:
    [statement] = Plan.parse(f"mesh (dp=2)\n{line}").recomputed
    with pytest.raises(PlanError) as refused:
        Regions(statement, frozenset({"layers.0.mlp.up", "layers.0.attention"})).check(["attention", "gelu"])
    assert refused.value.code == "E0114" and message in refused.value.message
    assert refused.value.help == help and refused.value.span is not None
