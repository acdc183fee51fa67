"""First weights are compared with the target's by name: two exchanged ones are seen in a folder and at writing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stretto.driver.calls.compile_check import checked_record, show_checked
from stretto.driver.check.run_program import RunJob, run_check, show_check
from stretto.driver.compile.compile_target import CompileJob, compile_target
from stretto.runtime.checks.report import WEIGHTS, CheckReport, CheckRow, Verdict
from stretto.runtime.program import folder
from stretto.runtime.program.program import Program

from ...subsets import some

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.down(torch.tanh(self.norm(self.up(x)))).square().mean()


def make():
    return Net(), {"x": torch.randn(8, 6)}


def unseeded():
    torch.seed()
    return make()
"""
UP, DOWN = "up.weight", "down.weight"
MEAN, VAR = "norm.running_mean", "norm.running_var"


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "model.py").write_text(SOURCE)
    (tmp_path / "dp.plan").write_text("mesh (dp=2)\n")
    return tmp_path


def job(files: Path, target: str = "make") -> CompileJob:
    return CompileJob(f"{files}/model.py:{target}", f"{files}/dp.plan", f"{files}/program", "train", "float64")


def against(files: Path, target: str = "make") -> CheckReport:
    """The result of `run DIR --check --against TARGET`."""
    report, comparison = run_check(RunJob(f"{files}/program", steps=1, against=f"{files}/model.py:{target}"))
    show_check(report, comparison)
    return report


def verdicts(report: CheckReport) -> dict[str, Verdict]:
    return {row.name: row.verdict for row in report.rows if row.kind == WEIGHTS}


def exchanged(first: str, second: str) -> Callable[[Any], dict[str, Any]]:
    names = {first: second, second: first}
    return lambda weights: {names.get(name, name): value for name, value in weights.items()}


@pytest.mark.parametrize("pair", some(((UP, DOWN),), ((MEAN, VAR),)))
def test_two_tensors_of_a_folder_in_each_others_place_differ(
    pair: tuple[str, str], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, _ = compile_target(job(files))
    right = against(files)
    assert right.passed and set(verdicts(right).values()) == {Verdict.EQUAL}
    assert {UP, DOWN, MEAN, VAR} <= set(verdicts(right))
    replace(program, initial=exchanged(*pair)(program.weights)).save(files / "program")
    report = against(files)
    assert not report.passed
    assert {name for name, verdict in verdicts(report).items() if verdict is Verdict.DIFFERS} == set(pair)
    assert "failed: 2 of the first weights are not the target's" in capsys.readouterr().out


def test_a_weight_that_the_folder_lacks_differs(files: Path) -> None:
    program, _ = compile_target(job(files))
    replace(program, initial={name: v for name, v in program.weights.items() if name != UP}).save(files / "program")
    assert verdicts(against(files))[UP] is Verdict.DIFFERS


@pytest.mark.slow
def test_compile_checks_the_weights_as_they_are_written(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = compile_target(job(files), checked_record)
    assert program.manifest.checked["weights"] == {"equal": 9} and program.manifest.checked["result"] == "passed"
    right = folder.write_weights
    monkeypatch.setattr(folder, "write_weights", lambda path, weights: right(path, exchanged(UP, DOWN)(weights)))
    checked = compile_target(job(files), checked_record)[0].manifest.checked
    assert checked["result"] == "failed" and checked["differ"] == [f"weights {UP}", f"weights {DOWN}"]


@pytest.mark.slow
def test_weights_of_a_target_that_draws_others_at_each_load_are_not_compared(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, _ = compile_target(job(files, "unseeded"), checked_record)
    assert program.manifest.checked["result"] == "passed"
    show_checked(program)
    assert "the first weights of 4 tensors were not compared" in capsys.readouterr().out
    report = against(files, "unseeded")
    assert report.passed
    found = verdicts(report)
    assert found[UP] is Verdict.NOT_CHECKED and found[MEAN] is Verdict.EQUAL
    assert "the target gives other values at each load" in capsys.readouterr().out


def test_weights_of_a_changed_file_are_not_compared_and_said_so(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compile_target(job(files))
    (files / "model.py").write_text(SOURCE.replace("return Net()", "torch.manual_seed(5)\n    return Net()"))
    report = against(files)
    assert report.passed and verdicts(report)[UP] is Verdict.NOT_CHECKED
    assert "not the one that the program was compiled from" in capsys.readouterr().out


def test_a_program_without_weights_has_no_such_rows(files: Path) -> None:
    program, _ = compile_target(job(files))
    replace(program, initial={}).save(files / "program")
    assert Program.load(files / "program").weights == {}
    assert verdicts(against(files)) == {}


def test_equal_weights_alone_judge_nothing() -> None:
    row = CheckRow(WEIGHTS, UP, 0.0, Verdict.EQUAL)
    assert CheckReport((row,), "float64", 0, 0).is_unjudged and not CheckReport((row,), "float64", 0, 0).passed
    assert not CheckReport((replace(row, verdict=Verdict.DIFFERS),), "float64", 0, 0).is_unjudged
