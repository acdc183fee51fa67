"""What the processes of `test_fused_projections.py` run: training with a fused projection that is cut inside blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stretto
import torch
from torch import nn

from ...end_to_end.fused_models import MODELS, inputs

NAME = "slices, grouped"


def model() -> nn.Module:
    torch.manual_seed(2)
    return MODELS[NAME]().double()


def stepped(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """The losses and gradient norms of some steps."""
    found = []
    for step in steps:
        torch.manual_seed(step)
        loss = module(**{name: value.double() for name, value in inputs().items()})
        optimizer.zero_grad()
        loss.backward()
        found += [loss.item(), nn.utils.clip_grad_norm_(module.parameters(), 0.5).item()]
        optimizer.step()
    return found


def trained(rank: int, plan: str, folder: Path) -> Any:
    """Three steps, the parameter's part and whole, and a checkpoint."""
    compiled = stretto.compile(model(), plan=plan)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2)
    losses = stepped(compiled, optimizer, range(3))
    stretto.save_checkpoint(folder / "fused", compiled, optimizer)
    weight: Any = dict(compiled.named_parameters())["layers.0.qkv.weight"]
    blocks = [s.blocks for each in stretto.program_of(compiled).inputs for s in each.shards if s.blocks]
    return {"losses": losses, "whole": weight.full_tensor().tolist(), "blocks": blocks}


def resumed(rank: int, plan: str, folder: Path) -> Any:
    """The fourth step from the checkpoint, under a plan."""
    compiled = stretto.compile(model(), plan=plan)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2)
    stretto.load_checkpoint(folder / "fused", compiled, optimizer)
    return stepped(compiled, optimizer, range(3, 4))
