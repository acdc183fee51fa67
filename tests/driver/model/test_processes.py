"""One script, as threads and under torchrun: the same losses, and parameters of which each process holds its part."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("train_script.py")
DROPOUT = SCRIPT.with_name("dropout_script.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ONE_AFTER_ANOTHER = """
import runpy, sys
for script in sys.argv[2:]:
    runpy.run_path(script, run_name="__main__")
"""


def run(mesh: str, *launcher: str, script: Path = SCRIPT) -> dict[str, Any]:
    """What a script prints."""
    [report] = reports(*launcher, str(script), mesh)
    return report


def reports(*command: str) -> list[dict[str, Any]]:
    """The lines that a command of Python prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    completed = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    assert completed.returncode == 0, completed.stderr
    return [json.loads(line) for line in completed.stdout.splitlines()]


def here(command: tuple[str, ...]) -> list[dict[str, Any]]:
    """The lines that a script prints in this process, which has imported the compiler."""
    printed, dtype = io.StringIO(), torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", list(command))
        try:
            runpy.run_path(command[0], run_name="__main__")
        finally:
            torch.set_default_dtype(dtype)
    return [json.loads(line) for line in printed.getvalue().splitlines()]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What both scripts print on two ranks, one after another: a launch takes longer than what they do."""
    runner = tmp_path_factory.mktemp("scripts") / "one_after_another.py"
    runner.write_text(ONE_AFTER_ANOTHER)
    command = (str(runner), "tp=2", str(SCRIPT), str(DROPOUT))
    return {"threads": here(command), "processes": reports(*TORCHRUN, "2", *command)}


def assert_trained_alike(threads: dict[str, Any], processes: dict[str, Any]) -> None:
    assert threads["class"] == pytest.approx(threads["plain"], rel=1e-9)
    assert processes["class"] == pytest.approx(threads["class"], rel=1e-9)
    assert processes["model"] == processes["class"][:3] and threads["model"] == threads["class"][:3]
    for report in (threads, processes):
        for plain, compiled in report["optimizers"].values():
            assert compiled == pytest.approx(plain, rel=1e-10)
        assert report["parts"][0] == pytest.approx(report["parts"][1], rel=1e-12)
    assert processes["hash"] == threads["hash"]
    assert (
        processes["names"] == threads["names"] == ["embed.weight", "up.weight", "up.bias", "down.weight", "down.bias"]
    )
    assert (threads["type"], processes["type"]) == ("Parameter", "DistributedTensor")
    assert threads["shapes"] == [[51, 8], [12, 8], [12], [8, 12], [8]]
    assert processes["shapes"] == [[26, 8], [6, 8], [6], [8, 6], [8]]
    assert processes["refused"] == ["E0120", "E0603", "E0603", "E0604"]


def test_a_script_under_torchrun_trains_as_it_does_with_threads(both: dict[str, list[dict[str, Any]]]) -> None:
    assert_trained_alike(both["threads"][0], both["processes"][0])


@pytest.mark.slow
def test_a_script_under_torchrun_trains_on_two_axes_as_it_does_with_threads() -> None:
    assert_trained_alike(run("dp=2, tp=2"), run("dp=2, tp=2", *TORCHRUN, "4"))


def test_processes_drop_what_threads_drop_and_refuse_different_seeds(both: dict[str, list[dict[str, Any]]]) -> None:
    threads, processes = both["threads"][1], both["processes"][1]
    assert processes["losses"] == pytest.approx(threads["losses"], rel=1e-12, abs=0)
    assert len(set(threads["losses"])) == 3 and threads["step"] == processes["step"] == 3
    assert (threads["code"], processes["code"]) == ("", "E0609")


@pytest.mark.slow
def test_processes_scale_a_float16_loss_as_threads_do_and_skip_the_same_step() -> None:
    script = SCRIPT.with_name("precision_script.py")
    threads, processes = run("tp=2", script=script), run("tp=2", *TORCHRUN, "2", script=script)
    assert (threads["parts"], processes["parts"]) == (False, True)
    assert threads["dtypes"] == processes["dtypes"] == ["torch.float32", "torch.float32"]
    assert [norm is None for _, norm, _ in threads["steps"]] == [True, False, False, False]
    assert [scale for *_, scale in processes["steps"]] == [scale for *_, scale in threads["steps"]]
    for ours, theirs in zip(processes["steps"], threads["steps"], strict=True):
        assert ours[0] == pytest.approx(theirs[0], rel=1e-3)
        assert (ours[1] or 0.0) == pytest.approx(theirs[1] or 0.0, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["dp=2", "tp=2"], ids=["batches", "lengths"])
def test_processes_are_bound_to_sizes_that_they_cannot_share_evenly(mesh: str) -> None:
    script = SCRIPT.with_name("dynamic_script.py")
    processes = run(mesh, *TORCHRUN, "2", script=script)
    assert processes["losses"] == pytest.approx(processes["plain"], rel=1e-9)
    assert processes["words"] == ["compiled", "bound", "compiled", "bound", "bound"]
