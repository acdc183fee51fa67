"""A bound on the memory of collectives under way: a lower proved peak, and the same values."""

from __future__ import annotations

import pytest
from stretto.driver.compile import compile_program
from stretto.passes.overlap.start_collectives import StartCollectives
from stretto.runtime.checks.program_check import check
from stretto.runtime.prover import prove

from .checking import assert_report, compiled
from .models import Size, gpt, plan

CASE = gpt(Size(layers=1))


@pytest.mark.slow
def test_a_bound_on_what_is_under_way_lowers_the_proved_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gradients wait at the end of a step, where each exists twice: before and after its sum."""
    usual = compile_program.default_pipeline
    alone = compiled(CASE, plan("gpt", "dp=2")).program
    with monkeypatch.context() as patch:
        patch.setattr(
            compile_program,
            "default_pipeline",
            lambda config: [*usual(config)[:-3], StartCollectives(max_in_flight=4096)],
        )
        bounded = compiled(CASE, plan("gpt", "dp=2")).program
    assert prove(bounded).safe and prove(bounded).peak_bytes < prove(alone).peak_bytes
    assert_report(check(bounded))
