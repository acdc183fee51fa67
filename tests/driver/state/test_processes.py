"""Checkpoints and weights in processes: each process reads and writes its own part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stretto
import torch
from safetensors.torch import load_file

from .models import adamw, seeded, train

SCRIPT = Path(__file__).with_name("checkpoint_script.py")


@pytest.mark.slow  # forked ranks save and load in the default run: tests/driver/model/test_stages.py
@pytest.mark.parametrize(("mesh", "ranks"), [("tp=2", 2), ("dp=2, tp=2", 4)], ids=["tp", "dp_tp"])
def test_processes_continue_what_threads_began_and_one_process_continues_theirs(
    mesh: str, ranks: int, tmp_path: Path
) -> None:
    model = stretto.compile(seeded(), plan="mesh (dp=2)")
    optimizer = adamw(model)
    train(model, optimizer, range(3))
    stretto.save_checkpoint(tmp_path / "from", model, optimizer, step=3)
    stretto.save_weights(model, tmp_path / "from.safetensors")
    expected = train(model, optimizer, range(3, 9))

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    completed = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), mesh, str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    report = json.loads(completed.stdout)
    assert report["losses"] == pytest.approx(expected[:3], rel=1e-12)
    assert report["kind"] == "DistributedTensor" and all(report["same"]) and all(report["loaded"])

    plain = seeded(5)
    optimizer = adamw(plain)
    assert stretto.load_checkpoint(tmp_path / "to", plain, optimizer) == {"step": 6}
    weights = load_file(tmp_path / "to.safetensors")
    assert all(torch.equal(weights[name], parameter) for name, parameter in plain.named_parameters())
    assert train(plain, optimizer, range(6, 9)) == pytest.approx(expected[3:], rel=1e-12)

    plain = seeded(6)
    optimizer = adamw(plain)
    stretto.load_checkpoint(tmp_path / "fresh", plain, optimizer)
    plain.up.requires_grad_(False)
    assert train(plain, optimizer, range(2)) == pytest.approx(report["fresh"][:2], rel=1e-12)
    stretto.load_checkpoint(tmp_path / "part", plain.requires_grad_(True), optimizer)
    assert train(plain, optimizer, range(2, 4)) == pytest.approx(report["fresh"][2:], rel=1e-12)
