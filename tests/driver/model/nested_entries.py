"""What the processes of `test_nested_axes.py` run: a training loop in which all but the plan is the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stretto
import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Two linear layers; the extents 10 and 7 do not divide by four ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 7)
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = ((self.down(torch.tanh(self.up(x))) - y) ** 2).mean()
        return loss


def losses_of(model: nn.Module, clip: Any) -> list[float]:
    """The losses and clipped norms of three steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return [number for step in range(3) for number in _step(model, optimizer, clip, step)]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, clip: Any, step: int) -> list[float]:
    torch.manual_seed(100 + step)
    loss = model(torch.randn(8, 8, dtype=torch.float64), torch.randn(8, 7, dtype=torch.float64))
    optimizer.zero_grad()
    loss.backward()
    norm = clip(model)
    optimizer.step()
    return [loss.item(), norm.item()]


def clip_by_torch(model: nn.Module) -> Tensor:
    return nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def clip_by_stretto(model: nn.Module) -> Tensor:
    return stretto.clip_grad_norm_(model, 0.1)


def trained(rank: int, plan: str, folder: Path) -> Any:
    """Losses and parameters after three steps, and a checkpoint of them; then the same from files of all values."""
    compiled = stretto.compile(Perceptron(), plan=plan)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2)
    losses = [number for step in range(3) for number in _step(compiled, optimizer, clip_by_stretto, step)]
    stretto.save_checkpoint(folder / "nested", compiled, optimizer)
    parts = {name: parameter.to_local().tolist() for name, parameter in compiled.named_parameters()}
    whole = {name: parameter.full_tensor().tolist() for name, parameter in compiled.named_parameters()}
    other = stretto.compile(Perceptron(), plan=plan)
    other.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in whole.items()})
    again = {name: parameter.to_local().tolist() for name, parameter in other.named_parameters()}
    by_lists = torch.optim.AdamW(other.parameters(), lr=1e-2, foreach=True)
    for step in range(3):
        _step(other, by_lists, clip_by_torch, step)
    by_torch = losses_of(stretto.compile(Perceptron(), plan=plan), clip_by_torch)
    return {"losses": losses, "by torch": by_torch, "parts": parts, "whole": whole, "again": again == parts}


def resumed(rank: int, plan: str, folder: Path) -> Any:
    """A fourth step from the checkpoint, under a plan."""
    compiled = stretto.compile(Perceptron(), plan=plan)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2)
    stretto.load_checkpoint(folder / "nested", compiled, optimizer)
    return _step(compiled, optimizer, clip_by_stretto, 3)
