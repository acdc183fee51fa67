"""The examples train as one device does: each script compares its first losses and ends with 1 where they differ."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from stretto import Plan

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL = ("--steps", "4", "--compare", "4", "--batch", "4", "--seq", "32", "--hidden", "32", "--layers", "2")
PLANS = ("dp", "tp", "dp_tp", "tp_sequence", "fsdp")


def train(script: str, plan: str, *options: str, processes: int = 0) -> list[str]:
    """The lines that the script prints."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes else []
    command = [sys.executable, *launch, str(EXAMPLES / script), "--plan", str(EXAMPLES / "plans" / f"{plan}.plan")]
    result = subprocess.run([*command, *SMALL, *options], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def losses(lines: list[str]) -> list[float]:
    return [float(line.split()[1]) for line in lines if line.split()[0].isdigit()]


@pytest.mark.slow  # README's first command trains the same script
def test_gpt_trains_as_one_device_does() -> None:
    lines = train("train_gpt.py", "dp_tp", "--dtype", "float64")
    assert lines[-1] == "the first 4 losses are the single-device run's to 1e-09"
    assert len(losses(lines)) == 4
    assert losses(lines)[-1] < losses(lines)[0]


@pytest.mark.slow
def test_llama_trains_as_one_device_does() -> None:
    lines = train("train_llama.py", "tp_sequence", "--tie")
    assert lines[-1] == "the first 4 losses are the single-device run's to 0.0001"


def test_a_run_goes_on_under_another_plan_and_under_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has imported the compiler."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["resume_gpt.py", "--steps", "4"])
    runpy.run_path(str(EXAMPLES / "resume_gpt.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == "all 3 go on alike, to 1e-09"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("script", ["train_gpt.py", "train_llama.py"])
def test_every_example_trains_under_every_plan_on_threads(script: str, plan: str, dtype: str) -> None:
    assert "losses are the single-device run's" in train(script, plan, "--dtype", dtype)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("script", ["train_gpt.py", "train_llama.py"])
def test_every_example_trains_under_every_plan_on_processes(script: str, plan: str) -> None:
    ranks = Plan.load(EXAMPLES / "plans" / f"{plan}.plan").mesh.size
    lines = train(script, plan, processes=ranks)
    assert "losses are the single-device run's" in lines[-1]
    assert len(losses(lines)) == 4, "one process prints"
