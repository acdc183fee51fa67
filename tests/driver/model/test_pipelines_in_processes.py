"""A loop under a pipeline gives the same in threads and in processes, and goes on from a checkpoint under any plan."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .pipeline_script import losses

SCRIPT = Path(__file__).with_name("pipeline_script.py")


@pytest.fixture(autouse=True)
def float64_is_left() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def in_processes(plan: str, folder: Path, first: int) -> list[float]:
    """What rank 0 of four prints."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    result = subprocess.run(
        [*launch, str(SCRIPT), plan, str(folder), str(first)], capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lists = [json.loads(match) for match in re.findall(r"\[[^\]]*\]", result.stdout)]
    assert lists == [lists[0]] * 4
    return lists[0]


@pytest.mark.slow
def test_a_pipeline_goes_on_under_tensor_parallelism(tmp_path: Path) -> None:
    pipelined = losses("pipeline", tmp_path, 0, 2)
    expected = losses("tensor", tmp_path, 0, 2)
    assert pipelined == pytest.approx(expected, rel=1e-9)
    assert losses("pipeline", tmp_path, 2, 2) == pytest.approx(losses("tensor", tmp_path, 2, 2), rel=1e-9)


@pytest.mark.slow
def test_processes_go_on_from_one_plan_to_the_other(tmp_path: Path) -> None:
    expected = losses("pipeline", tmp_path / "threads", 0, 2)
    after = losses("pipeline", tmp_path / "threads", 2, 2)
    assert in_processes("pipeline", tmp_path, 0) == pytest.approx(expected, rel=1e-9)
    assert in_processes("tensor", tmp_path, 2) == pytest.approx(after, rel=1e-9)
    assert losses("tensor", tmp_path, 2, 2) == pytest.approx(after, rel=1e-9)
    (tmp_path / "again").mkdir()
    first = losses("tensor", tmp_path / "again", 0, 2)
    assert first == pytest.approx(expected, rel=1e-9)
    assert in_processes("pipeline", tmp_path / "again", 2) == pytest.approx(after, rel=1e-9)
