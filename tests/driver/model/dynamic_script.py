"""Trains on batches of several sizes, and of several lengths where tp shards the tokens.

Prints the losses, those of the plain model, and what was compiled or bound.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence

import stretto
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = (4, 6, 3, 5, 8)
LENGTHS = (8, 12, 9, 5, 6)
SHARDED = 'shard "up" columns over tp\nshard "down" rows over tp'


class Model(nn.Module):
    """x (batch, seq, 6), y (batch, seq) -> the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.up, self.down = nn.Linear(6, 18), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = self.mix(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v)
        return F.cross_entropy(self.down(self.up(x).relu()).flatten(0, 1), y.flatten())


class Words(logging.Handler):
    """Keeps the second word of each record: "compiled" or "bound"."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage().split()[1])


def losses(model: nn.Module, lengths: Sequence[int]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator, step_losses = torch.Generator().manual_seed(1), []
    for rows, seq in zip(ROWS, lengths, strict=True):
        x = torch.randn(rows, seq, 6, dtype=torch.float64, generator=generator)
        loss = model(x, torch.randint(5, (rows, seq), generator=generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step_losses.append(loss.item())
    return step_losses


if __name__ == "__main__":
    plan = f"mesh ({sys.argv[1]})\n{SHARDED if 'tp' in sys.argv[1] else ''}"
    dims, lengths = {0: "batch"}, [4] * len(ROWS)
    if "tp" in sys.argv[1]:
        plan += "\nshard activations tokens over tp"
        dims, lengths = {0: "batch", 1: "seq"}, [*LENGTHS]
    words = Words()
    logger = logging.getLogger("stretto")
    logger.setLevel(logging.INFO)
    logger.addHandler(words)
    torch.manual_seed(0)
    plain = Model().double()
    expected = losses(plain, lengths)
    torch.manual_seed(0)
    model = stretto.compile(Model().double(), plan=plan, dynamic={"x": dims, "y": dims})
    report = {"losses": losses(model, lengths), "plain": expected, "words": words.kept}
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(report))
