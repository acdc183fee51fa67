"""Parameters that ranks compute with in blocks are the caller's own in threads, processes and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import stretto
import torch

from ...end_to_end.fused_models import plan_of
from ...forked_ranks import values_of_ranks
from . import fused_entries
from .fused_entries import NAME, model, stepped

PLAN = plan_of("mesh (dp=2, tp=2)", NAME)


@pytest.mark.slow
def test_training_in_threads_and_processes_is_that_of_plain_pytorch_and_goes_on_anywhere(tmp_path: Path) -> None:
    plain = model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    expected = stepped(plain, optimizer, range(3))
    threads = stretto.compile(model(), plan=PLAN)
    assert stepped(threads, torch.optim.AdamW(threads.parameters(), lr=1e-2), range(3)) == pytest.approx(expected)
    for found in values_of_ranks(fused_entries.trained, 4, PLAN, tmp_path):
        assert (32, 16, 16) in found["blocks"]
        assert found["losses"] == pytest.approx(expected, rel=1e-10)
        weight = dict(plain.named_parameters())["layers.0.qkv.weight"].detach()
        torch.testing.assert_close(torch.tensor(found["whole"]).double(), weight, rtol=1e-6, atol=1e-7)

    ahead = stepped(plain, optimizer, range(3, 4))
    loaded = model()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-2)
    stretto.load_checkpoint(tmp_path / "fused", loaded, optimizer)
    assert stepped(loaded, optimizer, range(3, 4)) == pytest.approx(ahead, rel=1e-9)
    for found in values_of_ranks(fused_entries.resumed, 2, plan_of("mesh (tp=2)", NAME), tmp_path):
        assert found == pytest.approx(ahead, rel=1e-9)
