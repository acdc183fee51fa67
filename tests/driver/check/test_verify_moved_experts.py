"""`stretto verify TARGET --plan` checks what `move auto` decided, not what it would be without."""

from __future__ import annotations

from pathlib import Path

import pytest
from stretto.driver.check.verify_passes import PassesJob, PassesReport, verify_passes
from stretto.driver.check.verify_target import TargetJob, verify_target

SOURCE = """
import torch
from tests.end_to_end.expert_models import WIDTH, Mixture


def make():
    return Mixture(), {"x": torch.randn(4, 16, WIDTH)}
"""


@pytest.mark.slow
def test_weights_that_move_auto_chose_are_what_the_passes_are_checked_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experts.py").write_text(SOURCE)
    (tmp_path / "given.plan").write_text('mesh (dp=2)\nexperts "*.experts" over dp { move auto }\n')
    checked: list[str] = []

    def keep(job: PassesJob) -> PassesReport:
        checked.append(job.source.pipeline or "")
        return verify_passes(job)

    monkeypatch.setattr("stretto.driver.check.verify_target.verify_passes", keep)
    report = verify_target(TargetJob(f"{tmp_path / 'experts.py'}:make", str(tmp_path / "given.plan")))
    assert report.passed
    assert "gather-parameters" in [verdict.name for verdict in report.verdicts], "weights are gathered"
    assert "decided.plan" in checked[0]
