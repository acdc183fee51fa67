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
from torch.utils._python_dispatch import TorchDispatchMode

from ..models import batch, twins


def losses_of(model: nn.Module, steps: range) -> list[float]:
    """Each step accumulates two batches, the first unreduced where the model can, and clips."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return [_step(model, optimizer, step) for step in steps]


def continued(model: nn.Module, folder: Path, steps: range) -> list[float]:
    """The losses of further steps of a run that `trained` has saved."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stretto.load_checkpoint(folder / "stored", model, optimizer)
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


def filled(rank: int, plan: str, folder: Path) -> Any:
    """Of a model on the meta device that is filled from a file: the most elements of a real tensor meanwhile."""
    torch.manual_seed(3)
    with stretto.meta_parameters():
        empty = twins()[0]
    seen = LargestTensor()
    with seen:
        compiled = stretto.compile(empty, plan=plan, weights=folder / "whole.safetensors")
    own = [p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in compiled.parameters()]
    whole = [p.numel() for p in compiled.parameters()]
    total = float(sum(p.full_tensor().sum() if isinstance(p, DTensor) else p.sum() for p in compiled.parameters()))
    return {"largest": seen.elements, "own": sum(own), "whole": sum(whole), "largest whole": max(whole), "sum": total}


class LargestTensor(TorchDispatchMode):
    """The most elements of a tensor that an operation makes; memory that maps a file (not resizable) is left out."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                elements = storage.nbytes() // tensor.element_size() if storage.resizable() else 0
                self.elements = max(self.elements, elements)
        return result


@contextmanager
def all_reduced() -> Iterator[list[int]]:
    """The elements of each tensor that the runtime all-reduces inside."""
    elements, start = [0], DistributedCommunicator.all_reduce_start

    def counted(self: DistributedCommunicator, tensor: Tensor, axes: Sequence[str], *rest: Any) -> Any:
        elements.append(tensor.numel() if axes else 0)
        return start(self, tensor, axes, *rest)

    with mock.patch.object(DistributedCommunicator, "all_reduce_start", counted):
        yield elements
