"""Whole models, of examples, in stages: what the ranks compute together is what one device computes, in float64."""

from __future__ import annotations

import pytest
import torch
from stretto.frontend.captured import Mode
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import Verdict

from ..subsets import some
from .zoo import ZOO, compiled

JOINING = ("resnet", "mixtral", "mixtral_grouped")
"""Models that join rows of different microbatches: batch norms that train, losses that balance experts."""
STAGED = [name for name in ZOO if name not in JOINING]
DEFAULT = [("gpt", "pp_dp_tp.plan"), ("unet", "pp.plan")]
MATRIX = [(name, "pp.plan") for name in STAGED] + [
    (name, plan) for name in ("gpt", "llama") for plan in ("pp_dp_tp.plan", "pp_written.plan")
]


def _check(name: str, plan: str, mode: Mode) -> None:
    torch.manual_seed(0)
    report = check(compiled(name, plan, mode).program)
    assert report.passed, "\n".join(str(row) for row in report.rows if row.verdict is Verdict.DIFFERS)


@pytest.mark.parametrize(("name", "plan"), some(*DEFAULT))
def test_a_model_trains_in_stages(name: str, plan: str) -> None:
    _check(name, plan, Mode.TRAIN)


@pytest.mark.slow
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("name", "plan"), MATRIX)
def test_every_model_that_can_be_cut_over_time_is_right_in_stages(name: str, plan: str, mode: Mode) -> None:
    _check(name, plan, mode)
