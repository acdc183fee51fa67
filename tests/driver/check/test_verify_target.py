"""`stretto verify TARGET --plan`: faults of capture, of a pass and of lowering are each found in their own row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto.backends.program import lower_program
from stretto.driver.check import lowering_check
from stretto.driver.check.verify_passes import PassesReport, show_passes
from stretto.driver.check.verify_target import TargetJob, verify_target
from stretto.frontend.graph import expand_random_ops

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.drop, self.again = nn.Dropout(0.25), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, tokens, y):
        hidden = self.norm(self.drop(torch.tanh(self.up(self.embed(tokens)))))
        noisy = hidden + 0.1 * torch.randn_like(hidden)
        return F.mse_loss(self.again(self.down(noisy)), y)


class Beside(Net):
    def forward(self, tokens, y):
        hidden = self.up(self.embed(tokens))
        return F.mse_loss(self.down(torch.tanh(hidden)), y), {"hidden": hidden.sin(), "norm": hidden.square().mean()}


class Mixed(Net):
    def forward(self, tokens, y):
        hidden = torch.tanh(self.up(self.embed(tokens)))
        return F.mse_loss(self.down(hidden), y), hidden.flip(0)


class Cast(Net):
    def forward(self, tokens, y):
        hidden = self.up(self.embed(tokens).float()).to(torch.float32)
        with torch.no_grad():
            same = hidden.float()
            rounded = hidden.to(torch.bfloat16).float()
        return F.mse_loss(self.down(torch.tanh(same) * rounded.sigmoid()), y)


def cast():
    return Cast(), make()[1]


def mixed():
    return Mixed(), make()[1]


def beside():
    return Beside(), make()[1]


def make():
    return Net(), {"tokens": torch.arange(8) % 11, "y": torch.randn(8, 6)}


def fake():
    from stretto.frontend.targets.fake_parameters import fake_parameters

    with fake_parameters():
        net = Net()
    net.norm = nn.Identity()
    return net, make()[1]
"""

PLAN = 'mesh (dp=2, tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n'


@pytest.fixture
def job(tmp_path: Path) -> TargetJob:
    (tmp_path / "model.py").write_text(SOURCE)
    (tmp_path / "my.plan").write_text(PLAN)
    return TargetJob(f"{tmp_path}/model.py:make", f"{tmp_path}/my.plan")


def differing(report: PassesReport) -> list[str]:
    return [verdict.name for verdict in report.verdicts if verdict.breakage is not None]


def test_eager_capture_every_pass_and_the_program_are_equal(job: TargetJob, capsys: pytest.CaptureFixture[str]) -> None:
    report = verify_target(job)
    assert report.passed
    assert [report.verdicts[0].name, report.verdicts[-1].name] == ["capture", "lower to program"]
    assert report.verdicts[0].results >= 9
    show_passes(report)
    assert "equal: the captured module computes what eager PyTorch does" in capsys.readouterr().out


@pytest.mark.slow
def test_outputs_beside_the_loss_are_compared_and_differentiated(
    job: TargetJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job, target=job.target.replace(":make", ":beside"))
    assert verify_target(job).passed
    lowered = lower_program.lower_program

    def without_sine(module: Any) -> Any:
        program = lowered(module)
        main = program.functions["main"]
        code = tuple(replace(i, op="aten.cos.default") if i.op == "aten.sin.default" else i for i in main.code)
        return replace(program, functions={**program.functions, "main": replace(main, code=code)})

    monkeypatch.setattr(lowering_check, "lower_program", without_sine)
    report = verify_target(job)
    assert differing(report) == ["lower to program"]
    assert any("hidden" in line or "output 1" in line for line in report.verdicts[-1].lines)


def test_outputs_that_a_plan_refuses_leave_the_loss_compared(
    job: TargetJob, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(job.plan).write_text("mesh (pp=2)\npipeline over pp { schedule 1f1b microbatches 2 }\n")
    job = replace(job, target=job.target.replace(":make", ":mixed"))
    assert verify_target(job).passed
    assert "outputs beside the loss are not compared: E0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_converts_to_its_own_dtype_is_compared_as_it_is(job: TargetJob) -> None:
    assert verify_target(replace(job, target=job.target.replace(":make", ":cast"))).passed


def not_scaled(write: Any, x: Any, p: float, mask: Any) -> Any:
    return write(torch.ops.aten.mul.Tensor, x, mask)


_KEEP, _WORDS = expand_random_ops._Writer.keep, expand_random_ops._Writer.words


def other_side(self: Any, probability: float, like: Any = None, size: Any = None) -> Any:
    return _KEEP(self, 1 - probability, like, size)


def one_mask(self: Any, like: Any = None, size: Any = None, below: int | None = None) -> Any:
    self.count = 0
    return _WORDS(self, like, size, below)


FAULTS_OF_CAPTURE: dict[str, tuple[object, str, object]] = {
    "dropout does not scale what it keeps": (expand_random_ops, "_apply_dropout", not_scaled),
    "dropout keeps with p": (expand_random_ops._Writer, "keep", other_side),
    "all draws of a forward are one": (expand_random_ops._Writer, "words", one_mask),
}


@pytest.mark.parametrize("fault", FAULTS_OF_CAPTURE)
def test_a_fault_of_capture_differs_from_eager_pytorch(
    fault: str, job: TargetJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, name, wrong = FAULTS_OF_CAPTURE[fault]
    monkeypatch.setattr(owner, name, wrong)
    report = verify_target(job)
    assert differing(report) == ["capture"] and "partition-tensors" in report.not_run
    show_passes(report)
    assert "differs: the captured module does not compute what eager PyTorch does" in capsys.readouterr().out


def test_a_fault_of_lowering_is_in_the_last_row(job: TargetJob, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lower_program._Body._arguments

    def swapped(self: Any, call: Any) -> Any:
        args, kwargs = right(self, call)
        return ((args[1], args[0]), kwargs) if call.name == "aten.sub.Tensor" else (args, kwargs)

    monkeypatch.setattr(lower_program._Body, "_arguments", swapped)
    assert differing(verify_target(job)) == ["lower to program"]


@pytest.mark.slow
def test_a_target_without_weights_leaves_capture_unchecked(
    job: TargetJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = verify_target(TargetJob(f"{tmp_path}/model.py:fake", job.plan))
    assert report.is_unjudged and report.verdicts[0].is_unchecked
    assert all(verdict.equal for verdict in report.verdicts[1:])
    show_passes(report)
    assert 'not judged: of "capture", the target has shapes and no weights' in capsys.readouterr().out
