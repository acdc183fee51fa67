"""Trains on batches of several sizes: prints the losses, those of the plain model, and what was compiled or bound."""

from __future__ import annotations

import json
import logging
import os
import sys

import stretto
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = (4, 6, 3, 5, 8)


class Model(nn.Module):
    """x (batch, 6), y (batch) -> the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.down(self.up(x).relu()), y)


class Words(logging.Handler):
    """Keeps the second word of each record: "compiled" or "bound"."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage().split()[1])


def losses(model: nn.Module) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator, found = torch.Generator().manual_seed(1), []
    for rows in ROWS:
        x = torch.randn(rows, 6, dtype=torch.float64, generator=generator)
        loss = model(x, torch.randint(5, (rows,), generator=generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


if __name__ == "__main__":
    mesh = sys.argv[1]
    words = Words()
    logger = logging.getLogger("stretto")
    logger.setLevel(logging.INFO)
    logger.addHandler(words)
    torch.manual_seed(0)
    plain = Model().double()
    expected = losses(plain)
    torch.manual_seed(0)
    plan = f'mesh ({mesh})\nshard "up" columns over tp\nshard "down" rows over tp' if "tp" in mesh else f"mesh ({mesh})"
    model = stretto.compile(Model().double(), plan=plan, dynamic={"x": {0: "batch"}, "y": {0: "batch"}})
    report = {"losses": losses(model), "plain": expected, "words": words.kept}
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(report))
