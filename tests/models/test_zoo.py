"""Whole models, of examples: what the ranks compute together is what one device computes, to 1e-9 in float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stretto.frontend.captured import Mode
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import Verdict

from .zoo import BATCH, EXAMPLES, SEQ, ZOO, compiled, target_of

DATA_PARALLEL = "dp.plan"
MATRIX = [(name, plan) for name, entry in ZOO.items() for plan in (DATA_PARALLEL, *entry.plans)]
ALSO_ELSEWHERE = ("gpt", "llama", "gpt2")
"""Models that `tests/end_to_end` trains under many plans."""
LIKE_OTHERS = ("qwen2", "mixtral", "mixtral_grouped", "vit", "translator", "dit", "resnet")
"""Models whose operations others have too: not part of the default run."""
BY_PROCESSES = ("llama", "gpt2", "mixtral", "vit", "unet", "resnet")


def _check(name: str, plan: str, mode: Mode, rows: int | None = None) -> None:
    torch.manual_seed(0)
    program = compiled(name, plan, mode, rows=rows).program
    report = check(program)
    wrong = [row for row in report.rows if row.verdict is Verdict.DIFFERS]
    assert report.passed, "\n".join(map(str, wrong))
    assert not [remark["message"] for remark in program.remarks if "no sharding rule" in str(remark["message"])]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LIKE_OTHERS else []) for n in ZOO if n not in ALSO_ELSEWHERE],
)
def test_every_model_trains_under_a_sharded_plan(name: str) -> None:
    _check(name, ZOO[name].plans[-1], Mode.TRAIN)


@pytest.mark.slow
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("name", "plan"), MATRIX)
def test_every_model_is_right_under_every_plan(name: str, plan: str, mode: Mode) -> None:
    _check(name, plan, mode)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_model_trains_on_a_batch_that_its_ranks_cannot_share_evenly(name: str) -> None:
    for plan in (DATA_PARALLEL, ZOO[name].plans[0]):
        _check(name, plan, Mode.TRAIN, rows=3)


def _command(*arguments: str) -> str:
    run = [sys.executable, "-c", "import sys; from stretto.cli import main; sys.exit(main(sys.argv[1:]))", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_command_checks_every_model_against_the_model_itself(name: str, tmp_path: Path) -> None:
    program = str(tmp_path / "program")
    plan = str(EXAMPLES / "plans" / ZOO[name].plans[-1])
    size = ["--batch", str(BATCH), "--seq", str(SEQ)] if target_of(name).startswith("hf:") else []
    _command("compile", target_of(name), "--plan", plan, "--dtype", "float64", *size, "-o", program)
    against = ["--check", "--against", target_of(name)]
    said = _command("run", program, *against)
    assert "the uncompiled model" in said and said.splitlines()[-1].startswith("passed: ")
    if name in BY_PROCESSES:
        said = _command("run", program, *against, "--ranks", "processes")
        assert said.splitlines()[-1].startswith("passed: ")
