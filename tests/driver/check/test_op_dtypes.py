"""A line that multiplies in another dtype than in eager PyTorch is named, where no number shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto.driver.check.op_dtypes import OpDtypes
from stretto.driver.check.run_program import RunJob, run_check
from stretto.driver.compile.compile_target import CompileJob, compile_target
from stretto.frontend.graph import autocast
from stretto.runtime.checks.report import CheckReport
from torch import nn
from torch.nn import functional as F

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up, self.down = nn.Conv1d(4, 4, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.conv(x)  # convolution
            hidden = torch.tanh(self.up(hidden))  # product
            with torch.autocast("cpu", enabled=False):
                hidden = self.down(hidden.to(x.dtype))  # whole
            y = F.scaled_dot_product_attention(hidden[:, None], hidden[:, None], hidden[:, None])  # attention
        return (y.to(x.dtype)[:, 0] - x).square().mean()


class Plain(Net):
    def forward(self, x):
        hidden = torch.tanh(self.up(self.conv(x)))
        for layer in (self.up, self.down):
            hidden = layer(hidden)
        return (hidden - x).square().mean()


def make():
    return Net(), {"x": torch.randn(4, 4, 8)}


def plain():
    return Plain(), {"x": torch.randn(4, 4, 8)}
"""
PLANS = {
    "dp": "mesh (dp=2)\n",
    "short": 'mesh (dp=2, tp=2)\nshard "up" columns over tp\nprecision { params fp32  compute bf16  reduce fp32 }\n',
}
Right = Callable[..., Any]


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "model.py").write_text(SOURCE)
    for name, text in PLANS.items():
        (tmp_path / f"{name}.plan").write_text(text)
    return tmp_path


def checked(files: Path, target: str, plan: str = "dp") -> CheckReport:
    """The result of `run DIR --check --against TARGET` of a new program."""
    name = f"{files}/model.py:{target}"
    compile_target(CompileJob(name, f"{files}/{plan}.plan", f"{files}/program"))
    return run_check(RunJob(f"{files}/program", steps=1, against=name))[0]


def lines(report: CheckReport) -> list[str]:
    """The comments at the lines that differ."""
    numbers = [int(row.name.rpartition(":")[2]) for row in report.rows if row.kind == "dtype"]
    return [SOURCE.splitlines()[number - 1].rpartition("# ")[2] for number in numbers]


@pytest.mark.parametrize(("target", "plan"), [("make", "dp"), ("plain", "short"), ("plain", "dp")])
def test_a_right_program_multiplies_as_eager_pytorch_does(files: Path, target: str, plan: str) -> None:
    report = checked(files, target, plan)
    assert report.passed and lines(report) == []


def always_on(right: Right) -> Right:
    return lambda dtype, enabled: right(dtype, True)


def always_off(right: Right) -> Right:
    return lambda dtype, enabled: right(dtype, False)


@pytest.mark.parametrize(
    ("wrong", "named"), [(always_on, ["whole"]), (always_off, ["convolution", "product", "attention"])]
)
def test_a_region_of_autocast_that_capture_mistakes_is_named_by_its_lines(
    wrong: Callable[[Right], Right], named: list[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocast, "enter", wrong(autocast.enter))
    report = checked(files, "make")
    assert not report.passed and lines(report) == named
    notes = [row.note for row in report.rows if row.kind == "dtype"]
    assert all("float32" in note and "bfloat16" in note for note in notes)


def test_every_dtype_of_a_line_is_recorded() -> None:
    layer = nn.Linear(4, 4)
    with OpDtypes() as seen:
        for dtype in (torch.float32, torch.bfloat16):
            F.linear(torch.ones(2, 4, dtype=dtype), layer.weight.to(dtype))
    [((file, _, kind), dtypes)] = seen.found.items()
    assert file == __file__ and kind == "matrix products" and dtypes == {torch.float32, torch.bfloat16}
