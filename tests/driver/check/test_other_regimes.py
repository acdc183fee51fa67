"""A check runs the executor on other values than those near 1 as well, and says on which it judged."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto.driver.calls.compile_check import checked_record
from stretto.driver.check.run_program import RunJob, run_check, show_check
from stretto.driver.compile.compile_target import CompileJob, compile_target
from stretto.runtime.checks.random_values import user_input
from stretto.runtime.checks.regimes import Regime
from stretto.runtime.checks.report import CheckReport, Verdict
from stretto.runtime.threads import rendezvous
from torch import Tensor

from ...subsets import only

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(13, 8), nn.LayerNorm(8), nn.Linear(8, 13)

    def forward(self, tokens, targets):
        return F.cross_entropy(self.head(self.norm(self.embed(tokens))), targets)


class Hidden(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.up, self.down, self.last = nn.Linear(6, 8), nn.Linear(8, 6), last

    def forward(self, x):
        return self.last(self.down(torch.tanh(self.up(x))), x)


def words():
    tokens = torch.arange(8) % 13
    return Words(), {"tokens": tokens, "targets": (tokens + 3) % 13}


def hidden():
    return Hidden(lambda y, x: (y - x).square().mean()), {"x": torch.randn(8, 6)}


def probability():
    return Hidden(lambda y, x: F.binary_cross_entropy(torch.sigmoid(y), x.square() / 1e3)), {"x": torch.randn(8, 6)}


def steep():
    return Hidden(lambda y, x: y.square().exp().exp().mean()), {"x": torch.randn(8, 6)}
"""
WORDS = 'mesh (dp=2, tp=2)\nshard "embed", "head" vocab over tp\n'
HIDDEN = 'mesh (dp=2, tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n'


BELOW = ("tall matrices below 0", "wide matrices below 0")


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "model.py").write_text(SOURCE)
    return tmp_path


def checked(files: Path, target: str, dtype: str = "float64", mode: str = "train") -> Any:
    """The result of `compile --check`."""
    plan = files / "my.plan"
    plan.write_text(WORDS if target == "words" else HIDDEN)
    job = CompileJob(f"{files}/model.py:{target}", str(plan), f"{files}/program", mode, dtype)
    return compile_target(job, checked_record)[0].manifest.checked


def ran(files: Path) -> CheckReport:
    """The result of `run DIR --check`."""
    report, comparison = run_check(RunJob(f"{files}/program", steps=1))
    show_check(report, comparison)
    return report


@pytest.mark.parametrize(
    ("mode", "dtype"),
    only([("train", "float32"), ("infer", "float64")], product(["train", "infer"], ["float32", "float64"])),
)
def test_a_right_program_is_right_in_every_regime(files: Path, dtype: str, mode: str) -> None:
    record = checked(files, "hidden", dtype, mode)
    assert record["result"] == "passed"
    assert record["regimes"] == [
        "normal",
        "large",
        "negative",
        "saturating",
        "overflowing",
        *BELOW,
        "zeros",
        "equal rows",
    ]


def test_a_regime_that_changes_no_value_is_not_run(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(files, "words")["regimes"] == [
        "normal",
        "negative",
        "saturating",
        "overflowing",
        *BELOW,
        "equal rows",
    ]
    assert ran(files).regimes == ("normal", "negative", "saturating", "overflowing", *BELOW, "equal rows")
    assert "values: normal, negative, saturating, overflowing" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", only(["bfloat16"], ["float32", "float64", "bfloat16"]))
@pytest.mark.slow
def test_a_maximum_that_is_computed_as_a_minimum_is_seen(
    dtype: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked(files, "words", dtype)["result"] == "passed"
    monkeypatch.setitem(rendezvous._COMBINE, "max", torch.minimum)
    assert checked(files, "words", dtype)["result"] == "failed"
    wrong = [row for row in ran(files).rows if row.verdict is Verdict.DIFFERS]
    assert any("with overflowing values" in row.note for row in wrong)


def test_a_maximum_that_is_never_below_0_is_seen(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "my.plan").write_text(WORDS)
    compile_target(CompileJob(f"{files}/model.py:words", f"{files}/my.plan", f"{files}/program"))
    monkeypatch.setitem(rendezvous._COMBINE, "max", lambda a, b: torch.maximum(a, b).clamp(min=0))
    wrong = [row for row in ran(files).rows if row.verdict is Verdict.DIFFERS]
    assert wrong and all(f"with {BELOW[0]} values" in row.note for row in wrong)


def test_sums_that_saturate_are_seen(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(a: Tensor, b: Tensor) -> Tensor:
        return (a + b).clamp(-1e3, 1e3)

    checked(files, "hidden")
    monkeypatch.setitem(rendezvous._COMBINE, "sum", saturating)
    report = ran(files)
    assert not report.passed and "normal" in report.regimes and "large" not in report.regimes
    assert {row.verdict for row in report.rows if not row.note} == {Verdict.EQUAL}


def test_values_that_the_model_refuses_are_left_out(files: Path) -> None:
    record = checked(files, "probability")
    assert record["result"] == "passed"
    assert record["regimes"] == ["normal", "negative", "saturating", "overflowing", *BELOW, "zeros", "equal rows"]


def test_values_at_which_the_model_overflows_are_left_out(files: Path) -> None:
    record = checked(files, "steep")
    assert record["result"] == "passed"
    assert "overflowing" not in record["regimes"] and "saturating" not in record["regimes"]


def test_zeros_and_hidden_rows_change_inputs_of_their_kind_alone() -> None:
    x, keep, words = torch.randn(3, 4), torch.rand(2, 3, 4) < 0.5, torch.arange(3)
    zeros, hidden = Regime.ZEROS.input(x), Regime.HIDDEN_ROWS.input(keep).flatten(0, 1)
    assert zeros[0].tolist() == zeros[-1].tolist() == [0.0] * 4 and torch.equal(zeros[1], x[1])
    assert not hidden[0].any() and hidden[-1].all() and torch.equal(hidden[1:-1], keep.flatten(0, 1)[1:-1])
    assert all(Regime.HIDDEN_ROWS.input(each) is each for each in (x, words, keep[0, 0]))
    assert all(Regime.ZEROS.input(each) is each for each in (words, keep))
    bias = {("parameter", "up.bias"): torch.randn(4), ("parameter", "up.weight"): x}
    assert [bool(value.any()) for value in Regime.ZEROS.values(bias).values()] == [False, True]


def test_integers_have_the_named_ones_among_them_the_lowest_and_the_highest() -> None:
    random = torch.Generator().manual_seed(0)
    drawn = user_input((4, 8), "int64", {"low": 2, "high": 50_000, "named": [7, 60_000]}, random)
    assert {2, 7, 49_999} <= set(drawn.flatten().tolist()) and int(drawn.max()) < 50_000
    assert user_input((), "int64", {"high": 5}, random).shape == ()
