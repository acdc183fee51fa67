"""A check compares a program with dropout with the uncompiled model under the same masks."""

from __future__ import annotations

from pathlib import Path

import pytest
from stretto.driver.check.live_model import Comparison, comparison_for
from stretto.driver.compile.compile_target import CompileJob, compile_target
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import CheckReport, Verdict

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(8, 16), nn.Linear(16, 8), nn.Dropout(0.2)
        self.features, self.alpha = nn.Dropout1d(0.3), nn.AlphaDropout(0.1)

    def forward(self, x):
        hidden = self.features(self.drop(F.gelu(self.up(x))))
        y = self.alpha(self.down(hidden))[:, None]
        sees_nothing = torch.zeros(3, 3).masked_fill(torch.arange(3)[:, None] == 1, -torch.inf)
        y = F.scaled_dot_product_attention(y, y, y, attn_mask=sees_nothing, dropout_p=0.4) * {factor}
        return F.dropout(y, 0.1, inplace=True).pow(2).mean()

def target():
    torch.manual_seed(0)
    return Model(), {{"x": torch.randn(4, 3, 8)}}
"""


def checked(folder: Path, factor: str) -> tuple[CheckReport, Comparison]:
    """A check of the model above in float64, and what it was with."""
    (folder / "model.py").write_text(SOURCE.format(factor=factor))
    (folder / "tp.plan").write_text('mesh (tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n')
    job = CompileJob(f"{folder}/model.py:target", f"{folder}/tp.plan", f"{folder}/program", dtype="float64")
    program, _ = compile_target(job)
    comparison = comparison_for(program, f"{folder}/model.py:target")
    return check(program, expected=comparison.expected), comparison


@pytest.mark.usefixtures("capsys")
def test_the_uncompiled_model_drops_what_the_program_drops(tmp_path: Path) -> None:
    report, comparison = checked(tmp_path, "1.0")
    assert report.passed and comparison.live


DRAWN = {
    "uniform and normal": (
        "torch.rand(4, 1, 3, 8)", "torch.randn(8)", "torch.randn_like(y)", "torch.rand_like(y) * torch.rand(8)",
        "torch.normal(torch.ones(3, 1), torch.ones(8))",
    ),
    "in place and integers": (
        "torch.randint(3, 9, (4, 1, 3, 8))", "torch.randperm(8)", "torch.randint_like(y, 5)",
        "torch.empty(8).uniform_(-1, 2)", "torch.empty(8).normal_(1, 2)", "torch.empty(8).exponential_(3)",
    ),
    "masks": (
        "torch.bernoulli(torch.full((8,), 0.7))", "F.dropout2d(y, 0.3)", "F.feature_alpha_dropout(y, 0.3, True)",
        "F.dropout1d(y[:, 0], 0.5)[:, None]",
    ),
}  # fmt: skip
"""Draws whose sum one program computes: a sum hides none of them, and a compile takes longer than all draws."""


@pytest.mark.usefixtures("capsys")
@pytest.mark.parametrize("kind", DRAWN)
def test_every_random_op_of_eager_mode_draws_what_the_program_draws(tmp_path: Path, kind: str) -> None:
    report, comparison = checked(tmp_path, f"({' + '.join(DRAWN[kind])})")
    assert comparison.live and report.passed, [row for row in report.rows if row.verdict is Verdict.DIFFERS]
