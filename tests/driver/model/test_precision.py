"""A plan's precision: masters, casts, and what gradients are reduced in, against plain torch on the same casts."""

from __future__ import annotations

import re
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.frontend.to_ir import Floats
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn

from ..precision_models import PLANS, build, eager_step, gradients, largest_error, on_casts

BF16 = torch.finfo(torch.bfloat16).eps
STARTED = re.compile(r'"comm\.(?:all_reduce|reduce_scatter)_start".*axes = \["(\w+)"\].*: \(tensor<(?:\d+x)*(\w+)')


def compiled(plan: str, precision: str) -> tuple[nn.Module, Tensor]:
    model, ids = build()
    return stretto.compile(model, plan=f"{plan}precision {{ {precision} }}\n"), ids


def reductions(model: nn.Module) -> Counter[tuple[str, str]]:
    """How many reductions over each axis are build in each dtype."""
    return Counter(STARTED.findall(stretto.program_of(model).ir))


@pytest.mark.parametrize(("plan", "roundings"), [("one", 0.5), ("dp", 2), ("dp_tp", 2)])
def test_losses_and_gradients_are_those_of_torch_on_casts_to_rounding(plan: str, roundings: float) -> None:
    model, ids = compiled(PLANS[plan], "params fp32  compute bf16  reduce fp32")
    loss = model(ids)
    loss.backward()
    plain, expected = eager_step(build()[0], ids, torch.bfloat16)
    assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}
    torch.testing.assert_close(loss, plain, rtol=roundings * BF16, atol=0)
    assert largest_error(gradients(model), expected) <= roundings * BF16


class Normed(nn.Module):
    """A batch norm over the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.up(x))).square().mean()


@pytest.mark.parametrize(("precision", "dtype"), [("", "f32"), ("params fp32  compute bf16  reduce fp32", "f32")])
def test_statistics_of_a_batch_norm_are_reduced_in_the_dtype_of_its_parameters(precision: str, dtype: str) -> None:
    said = f"precision {{ {precision} }}\n" if precision else ""
    model = stretto.compile(Normed(), plan=f"mesh (dp=2)\n{said}")
    model(torch.randn(8, 6)).backward()
    reduced = reductions(model)
    assert set(reduced) <= {("dp", dtype), ("dp", "bf16")} and reduced["dp", dtype] >= 4
    assert check(stretto.program_of(model), steps=1).passed


@pytest.mark.parametrize(
    ("precision", "dtype"), [("", "f32"), ("reduce fp32", "f32"), ("reduce bf16", "bf16"), ("reduce fp64", "f64")]
)
def test_gradients_are_reduced_in_the_dtype_that_the_plan_says(precision: str, dtype: str) -> None:
    model, ids = compiled(PLANS["dp_tp"], f"compute bf16 {precision}")
    model(ids).backward()
    kinds = reductions(model)
    parameters = len(list(model.parameters()))
    assert kinds["dp", dtype] >= parameters
    losses = {("dp", "f32")}
    assert {key for key in kinds if key[0] == "dp"} <= {("dp", dtype)} | losses
    assert {key for key in kinds if key[0] == "tp"} == {("tp", "bf16")}
    assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}


@pytest.mark.parametrize("precision", ["params fp32 compute bf16 reduce fp32", "compute fp16 reduce bf16"])
def test_in_float64_a_plan_with_a_precision_equals_the_model(precision: str) -> None:
    model, ids = build()
    plan = stretto.Plan.parse(f"{PLANS['dp_tp']}precision {{ {precision} }}\n")
    raised = compile_program(CompileRequest.of(model, (ids,), {}, plan, Options(floats=Floats.FLOAT64))).program
    report = check(raised)
    assert report.passed and report.tolerance == 1e-9, report
    program = compile_program(CompileRequest.of(model, (ids,), {}, plan)).program
    assert program.manifest.dtype == ("bfloat16" if "bf16" in precision else "float16")
    short = check(program)
    assert short.passed and short.tolerance is None, short


def test_a_check_differs_where_a_gradient_is_reduced_in_another_dtype_than_the_plan_says() -> None:
    model, ids = build()
    plan = stretto.Plan.parse(f"{PLANS['dp_tp']}precision {{ compute bf16 reduce bf16 }}\n")
    program = compile_program(CompileRequest.of(model, (ids,), {}, plan)).program
    assert program.manifest.arguments["reduce"] == "bfloat16" and check(program, steps=1).passed
    stated = {**program.manifest.arguments, "reduce": "float32"}
    report = check(replace(program, manifest=replace(program.manifest, arguments=stated)), steps=1)
    wrong = [row for row in report.rows if row.kind == "reduction"]
    assert not report.passed and {row.name for row in wrong} == {name for name, _ in model.named_parameters()}
    assert {row.note for row in wrong} == {"it is reduced in bfloat16, and the plan says float32"}


def test_without_a_precision_a_short_gradient_is_reduced_as_its_parameter_is() -> None:
    model, ids = build()
    model = stretto.compile(model, plan=PLANS["dp"])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids)
    loss.backward()
    assert set(reductions(model)) == {("dp", "f32")}


def test_what_waits_in_no_sync_is_reduced_once_as_the_parameter_is() -> None:
    model, ids = compiled(PLANS["dp"], "compute bf16 reduce bf16")
    waiting: Any = model
    expected = {name: 2 * gradient for name, gradient in eager_step(build()[0], ids, torch.bfloat16)[1].items()}
    with waiting.no_sync():
        model(ids).backward()
    assert not reductions(model) - Counter({("dp", "f32"): 2})
    model(ids).backward()
    assert largest_error(gradients(model), expected) <= 2 * BF16


def test_inference_runs_on_casts_of_parameters_and_floating_inputs() -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(8, 8), torch.randn(4, 8)
    model = stretto.compile(deepcopy(plain), plan="mesh (dp=2)\nprecision { compute bf16 }\n")
    with torch.no_grad():
        assert torch.equal(model(x), deepcopy(plain).bfloat16()(x.bfloat16()))
    assert model.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.filterwarnings("error")
def test_recurrent_layers_run_on_casts_of_their_weights_in_training_and_inference(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    plain, x = kind(6, 6, num_layers=2, batch_first=True), torch.randn(4, 5, 6)
    model = stretto.compile(deepcopy(plain), plan="mesh (dp=2)\nprecision { compute bf16 }\n")
    loss = model(x)[0].float().pow(2).mean()
    loss.backward()
    short = deepcopy(plain).bfloat16()
    expected = short(x.bfloat16())[0].float().pow(2).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2 * BF16)
    for own, other in zip(model.parameters(), short.parameters(), strict=True):
        assert own.dtype == own.grad.dtype == torch.float32
        assert (own.grad - other.grad).norm() <= 4 * BF16 * own.grad.norm()
    with torch.no_grad():
        assert torch.allclose(model(x)[0].float(), short(x.bfloat16())[0].float(), atol=2 * BF16)


def test_what_a_model_computes_in_float32_stays_so() -> None:
    class Raised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8))
            self.register_buffer("table", torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            wide = x.to(torch.float32)
            return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True))).to(x.dtype) + self.table

    torch.manual_seed(0)
    plain, x = Raised(), torch.randn(4, 8)
    model = stretto.compile(deepcopy(plain), plan="mesh (dp=1)\nprecision { compute bf16 }\n")
    with torch.no_grad():
        actual, expected = model(x), on_casts(plain, x.bfloat16(), torch.bfloat16)
    assert actual.dtype == torch.float32  # the buffer is no parameter, and stays what it is
    assert torch.equal(actual, expected)


def test_batch_norms_keep_their_parameters_beside_their_statistics() -> None:
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(8, 4)
    model = stretto.compile(deepcopy(plain), plan="mesh (dp=2)\nprecision { compute bf16 }\n")
    casts = {name: parameter.bfloat16() for name, parameter in plain.named_parameters() if name.startswith("0.")}
    expected = torch.func.functional_call(plain, casts, (x.bfloat16(),))
    torch.testing.assert_close(model(x), expected, rtol=2 * BF16, atol=2 * BF16)
    torch.testing.assert_close(model[1].running_var, plain[1].running_var, rtol=BF16, atol=BF16)


def test_parameters_of_another_format_are_refused_with_a_way_out() -> None:
    with pytest.raises(stretto.StrettoError) as caught:
        stretto.compile(nn.Linear(4, 4).bfloat16(), plan="mesh (dp=2)\nprecision { params fp32 }\n")
    error = caught.value
    assert (error.code, error.span and error.span.column) == ("E0123", 13)
    assert 'parameter "weight" is bf16' in error.message
    assert "model.to(torch.float32)" in error.help


def test_a_model_converted_after_it_was_compiled_is_refused_too() -> None:
    model = stretto.compile(nn.Linear(4, 4), plan="mesh (dp=2)\nprecision { params fp32 compute bf16 }\n").bfloat16()
    with pytest.raises(stretto.StrettoError, match="E0123"):
        model(torch.randn(4, 4))


@pytest.mark.parametrize("precision", ["compute fp32", "reduce fp32", "params fp32 compute fp32 reduce fp32"])
def test_a_precision_that_the_model_has_already_has_no_effect_and_warns(precision: str) -> None:
    model, ids = compiled(PLANS["dp"], precision)
    with pytest.warns(stretto.PlanWarning, match="this statement has no effect"):
        model(ids).backward()


def test_a_float16_loop_with_a_loss_scale_skips_and_steps_as_plain_torch_does() -> None:
    plain, ids = build()
    expected = scaled_steps(deepcopy(plain), lambda model: on_casts(model, ids, torch.float16))
    assert [value[1] for value in expected] == [True, False, False, False], "the first step overflows"
    model = stretto.compile(deepcopy(plain), plan=f"{PLANS['dp_tp']}precision {{ compute fp16 }}\n")
    output = scaled_steps(model, lambda model: model(ids))
    assert [value[1:] for value in output] == [value[1:] for value in expected]
    assert [value[0] for value in output] == pytest.approx([value[0] for value in expected], rel=4e-3)


def scaled_steps(model: nn.Module, forward: Any) -> list[tuple[float, bool, float]]:
    """Loss, whether the norm of the gradients was infinite, and the scale afterwards, of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, backoff_factor=2.0**-10)
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = forward(model)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = stretto.clip_grad_norm_(model, 0.5)
        scaler.step(optimizer)
        scaler.update()
        seen.append((float(loss.detach()), not bool(torch.isfinite(norm)), scaler.get_scale()))
    return seen
