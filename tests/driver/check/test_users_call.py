"""The eager side of a check is called as its user calls it: faults of capture's binding and results are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.calls.compile_check import checked_record
from stretto.driver.check.users_call import UsersCall
from stretto.driver.check.verify_target import TargetJob, verify_target
from stretto.driver.compile.compile_target import CompileJob, compile_target
from stretto.frontend.capture import call, traced
from torch import Tensor, nn

from ...subsets import some

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.up.weight

    def forward(self, x, /, pair, *, scale=2.0, **more):
        hidden = self.norm(self.up(x))
        first, second = pair["one"] - hidden, self.tied(pair["two"]) * scale
        return {"first": first + 3 * more["y"], "second": first * second}


class Plain(Net):
    def forward(self, x, pair, scale=2.0, **more):
        return super().forward(x, pair, scale=scale, **more)


def make():
    x, y, one, two = (torch.randn(8, 6) for _ in range(4))
    return Plain(), {"pair": {"two": two, "one": one}, "y": y, "x": x, "scale": 0.5}


class Trained(Plain):
    def forward(self, x, pair, **more):
        result = super().forward(x, pair, **more)
        return result["first"].square().mean() + result["second"].sum()


def train():
    _, inputs = make()
    return Trained(), inputs


def short():
    model, inputs = train()
    model.norm = nn.LayerNorm(6)
    return model, inputs
"""
Right = Callable[..., Any]


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "model.py").write_text(SOURCE)
    (tmp_path / "dp.plan").write_text("mesh (dp=2)\n")
    (tmp_path / "short.plan").write_text("mesh (dp=2)\nprecision { params fp32  compute bf16  reduce fp32 }\n")
    return tmp_path


def checked(files: Path, target: str, mode: str, plan: str = "dp", dtype: str | None = "float64") -> Any:
    """The result of `compile --check`."""
    name = f"{files}/model.py:{target}"
    job = CompileJob(name, f"{files}/{plan}.plan", f"{files}/program", mode, dtype)
    return compile_target(job, checked_record)[0].manifest.checked


@pytest.mark.parametrize(("target", "mode"), some(("train", "train"), ("make", "infer")))
def test_nested_keyword_and_constant_arguments_reach_the_model_as_written(files: Path, target: str, mode: str) -> None:
    assert checked(files, target, mode)["result"] == "passed"


@pytest.mark.slow
def test_eager_mode_computes_with_the_casts_that_the_plan_asks_for(files: Path) -> None:
    assert checked(files, "short", "train", "short", None)["result"] == "passed"


def arguments_reversed(right: Right) -> Right:
    return lambda self, tensors: right(self, tuple(tensors)[::-1])


def names_exchanged(right: Right) -> Right:
    def wrong(signature: Any, arguments: Any) -> call.BoundCall:
        bound = right(signature, arguments)
        exchanged = {"x": "y", "y": "x"}
        return replace(bound, names=tuple(exchanged.get(name, name) for name in bound.names))

    return wrong


def outputs_exchanged(right: Right) -> Right:
    def wrong(self: Any, result: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = right(self, result, inputs)
        return outputs[::-1]

    return wrong


def last_output(right: Right) -> Right:
    return lambda result: result["second"].sum() if isinstance(result, dict) else right(result) * 2


CHOICE_OF_LOSS = "something else is taken for the loss"
FAULTS: dict[str, tuple[object, str, Callable[[Right], Right], str]] = {
    "inputs are passed in each other's place": (call.BoundCall, "arguments", arguments_reversed, "train"),
    "inputs have each other's names": (call, "_flatten", names_exchanged, "train"),
    "outputs are returned in each other's place": (traced.TracedModel, "_flatten", outputs_exchanged, "make"),
    CHOICE_OF_LOSS: (traced, "loss_of", last_output, "train"),
}


@pytest.mark.parametrize("fault", some(*FAULTS))
def test_a_fault_of_captures_binding_differs_from_eager_pytorch(
    fault: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, make, target = FAULTS[fault]
    monkeypatch.setattr(owner, name, make(getattr(owner, name)))
    mode = "train" if target == "train" else "infer"
    assert checked(files, target, mode)["result"] == "failed"
    report = verify_target(TargetJob(f"{files}/model.py:{target}", f"{files}/dp.plan", mode))
    found = [verdict.name for verdict in report.verdicts if verdict.breakage is not None]
    assert found == ([] if fault == CHOICE_OF_LOSS else ["capture"])  # verify compares all outputs, and chooses none


@pytest.mark.slow
def test_another_cast_in_capture_than_the_plans_differs_from_eager_pytorch(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = traced.cast_inputs

    def wrong(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> tuple[Tensor, ...]:
        return tuple([0.75 * tensor for tensor in right(tensors, dtype)])

    monkeypatch.setattr(traced, "cast_inputs", wrong)
    assert checked(files, "short", "train", "short", None)["result"] == "failed"


def test_a_program_of_other_inputs_than_the_targets_call_is_refused() -> None:
    users = UsersCall({"x": torch.ones(2), "past": [torch.ones(1)]}, loss_only=False)
    assert list(users.tensors) == ["x", "past[0]"]
    users.refuse_other_inputs(["past[0]", "x"])
    with pytest.raises(StrettoError, match=r'E0666.*"x", and the target\'s call has "past\[0\]", "x"'):
        users.refuse_other_inputs(["x"])


def test_a_tied_parameter_is_cast_once_and_batch_norms_are_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight  # type: ignore[assignment]
    users = UsersCall({"input": torch.ones(3, 2)}, loss_only=False, compute=torch.bfloat16)
    [result] = users.results(model, {}, lambda tensor: tensor)
    result.sum().backward()
    assert result.dtype is torch.bfloat16 and all(p.grad is not None for p in model.parameters())
