"""An exception of Python, raised by what is under check, is a row of the check that names the part; not a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stretto import cli
from stretto.driver.calls import compile_check
from stretto.driver.calls.comparison import Calls, compare_calls
from stretto.driver.check.verify_passes import show_passes
from stretto.driver.check.verify_target import TargetJob, verify_target
from stretto.driver.compile import new_program
from stretto.dsl.plan import Plan
from stretto.frontend.capture import capture
from stretto.frontend.captured import Mode
from stretto.frontend.targets.target import Request
from stretto.ir.collectives import ALL_REDUCE
from stretto.passes.partition.reshard import Resharder
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import RAISED
from stretto.runtime.threads import session
from torch import Tensor, nn

from ...end_to_end.checking import compiled_model

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x))).square().mean()


def net():
    return Net(), {"x": torch.randn(4, 6)}
"""
PLAN = 'mesh (tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n'


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).square().mean()


@pytest.fixture
def job(tmp_path: Path) -> TargetJob:
    (tmp_path / "model.py").write_text(SOURCE)
    (tmp_path / "my.plan").write_text(PLAN)
    return TargetJob(f"{tmp_path}/model.py:net", f"{tmp_path}/my.plan")


def _beyond_the_end(tensor: Tensor, *_unused: Any) -> Tensor:
    return tensor.narrow(0, tensor.shape[0], 1)


def _raise(*_args: Any, **_kwargs: Any) -> Any:
    raise IndexError("list index out of range")


def test_a_part_out_of_range_in_the_runtime_is_a_row(monkeypatch: pytest.MonkeyPatch, job: TargetJob) -> None:
    program = compiled_model(Net(), {"x": torch.randn(4, 6)}, "mesh (dp=2)", Mode.TRAIN).program
    monkeypatch.setattr(session, "local_tensor", _beyond_the_end)
    report = check(program)
    assert not report.passed and [(row.kind, row.name) for row in report.rows] == [(RAISED, "the program")]
    assert "the runtime (runtime/threads/session.py, _local)" in report.rows[0].note
    assert report.failures == "1 of the parts under check raised an error"
    [row] = compare_calls(job.target, Request(Mode.TRAIN), Plan.load(job.plan)).rows
    assert (row.kind, row.name, row.differs) == (RAISED, "the model of stretto.compile", True)


def test_compile_check_says_what_raised(
    monkeypatch: pytest.MonkeyPatch, job: TargetJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "local_tensor", _beyond_the_end)
    monkeypatch.setattr(compile_check, "compare_calls", lambda *_unused: Calls(()))
    assert cli.main(["compile", job.target, "--plan", job.plan, "-o", str(tmp_path / "program"), "--check"]) == 1
    said = capsys.readouterr().out
    assert "failed: the program raised " in said and "raised by the runtime (runtime/threads/session.py" in said


def test_an_error_in_capture_is_its_row(
    monkeypatch: pytest.MonkeyPatch, job: TargetJob, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capture, "write_as_reshapes", [].__getitem__)
    report = verify_target(job)
    assert [verdict.name for verdict in report.verdicts] == ["capture"] and not report.passed
    show_passes(report)
    assert 'differs: "capture" raised an error\n  TypeError: list indices must be' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("faulty_pass", ["", "partition-tensors"])
def test_where_lowering_stumbles_the_first_pass_that_differs_is_named(
    faulty_pass: str, monkeypatch: pytest.MonkeyPatch, job: TargetJob
) -> None:
    right = Resharder._emit

    def maximum(resharder: Any, name: str, after: Any, *args: Any) -> None:
        right(resharder, name, after, *((args[0], "max") if name == ALL_REDUCE else args))

    monkeypatch.setattr(new_program, "lower_program", _raise)
    if faulty_pass:
        monkeypatch.setattr(Resharder, "_emit", maximum)
    report = verify_target(job)
    assert report.verdicts[-1].name == (faulty_pass or "lower to program") and not report.passed
    assert all(verdict.equal for verdict in report.verdicts[:-1])
