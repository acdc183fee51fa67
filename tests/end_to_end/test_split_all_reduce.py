"""A program compiled with `split-all-reduce` in its pipeline computes what one device computes."""

from __future__ import annotations

import pytest
from stretto.driver.compile import compile_program
from stretto.passes.default_pipeline import PipelineConfig
from stretto.passes.manager import Step
from stretto.passes.overlap.split_all_reduce import SplitAllReduce
from stretto.passes.overlap.start_collectives import StartCollectives
from stretto.runtime.checks.program_check import check

from ..subsets import some
from .checking import assert_report, compiled
from .models import Size, gpt, plan
from .traffic import messages


@pytest.mark.parametrize("mesh", some("dp=2, tp=2", "tp=4"))
@pytest.mark.slow
def test_a_gpt_whose_sums_are_split_trains_as_on_one_device(mesh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = compile_program.default_pipeline

    def pipeline(config: PipelineConfig) -> list[Step]:
        steps = usual(config)
        start = next(at for at, step in enumerate(steps) if isinstance(step, StartCollectives))
        return [*steps[:start], SplitAllReduce(), *steps[start:]]

    monkeypatch.setattr(compile_program, "default_pipeline", pipeline)
    program = compiled(gpt(Size(layers=1)), plan("gpt", mesh))
    assert {"reduce_scatter", "all_gather"} <= {message.kind for message in messages(program)}
    assert_report(check(program.program))
