"""What the processes of `test_stored_parameters.py` run: a training loop in which all but the plan is the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import stretto
import torch
from stretto.runtime.processes.communicator import DistributedCommunicator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..models import batch, twins


def losses_of(model: nn.Module, steps: range) -> list[float]:
    """Each step accumulates two batches, the first unreduced where the model can, and clips."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return [_step(model, optimizer, step) for step in steps]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    if hasattr(model, "no_sync"):
        with model.no_sync():
            model(*batch(2 * step)).backward()
    else:
        model(*batch(2 * step)).backward()
    loss = model(*batch(2 * step + 1))
    loss.backward()
    stretto.clip_grad_norm_(model, 0.5) if hasattr(model, "no_sync") else nn.utils.clip_grad_norm_(
        model.parameters(), 0.5
    )
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.item())


def trained(rank: int, plan: str, folder: Path) -> Any:
    """Losses of three steps in processes, what a process holds, and a checkpoint of it."""
    model, _ = twins(torch.float64)
    compiled = stretto.compile(model, plan=plan)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2)
    with all_reduced() as elements:
        losses = [_step(compiled, optimizer, step) for step in range(3)]
    stretto.save_checkpoint(folder / "stored", compiled, optimizer, step=3)
    states = [s["exp_avg"] for s in optimizer.state.values()]
    held = [t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in (*compiled.parameters(), *states)]
    whole = sum(p.numel() for p in twins()[0].parameters()) * 2
    return {"losses": losses, "held": sum(held), "whole": whole, "all_reduced": max(elements)}


@contextmanager
def all_reduced() -> Iterator[list[int]]:
    """The elements of each tensor that the runtime all-reduces inside."""
    elements, start = [0], DistributedCommunicator.all_reduce_start

    def counted(self: DistributedCommunicator, tensor: Tensor, axes: Sequence[str], *rest: Any) -> Any:
        elements.append(tensor.numel() if axes else 0)
        return start(self, tensor, axes, *rest)

    with mock.patch.object(DistributedCommunicator, "all_reduce_start", counted):
        yield elements
