"""The script of `test_pipelines_in_processes.py`, run with and without torchrun: a pipeline loop, then a resume."""

from __future__ import annotations

import sys
from pathlib import Path

import stretto
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARDS = """
shard "blocks.*.up"   columns over tp
shard "blocks.*.down" rows    over tp
"""
PLANS = {
    "pipeline": "mesh (pp=2, tp=2)\npipeline over pp { schedule 1f1b  microbatches 4 }" + SHARDS,
    "tensor": "mesh (tp=4)" + SHARDS,
}


class Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(hidden), nn.Dropout(0.1)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.drop(self.down(F.gelu(self.up(self.norm(x)))))
        return x + hidden


class Model(nn.Module):
    """Tied embeddings, so that one weight is used on the first and on the last stage."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, hidden)
        self.blocks = nn.ModuleList([Block(hidden) for _ in range(4)])
        self.head = nn.Linear(hidden, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(32, (8, 6), generator=generator), torch.randint(32, (8, 6), generator=generator)


def losses(plan: str, folder: Path, first: int, steps: int) -> list[float]:
    """The losses of some steps, with norms clipped and gradients accumulated; a checkpoint is read and written."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = stretto.compile(Model(), plan=PLANS[plan])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    if first:
        assert stretto.load_checkpoint(folder / f"at {first}", model, optimizer) == {"step": first}
    losses_and_norms = []
    for step in range(first, first + steps):
        with model.no_sync():
            model(*batch(2 * step)).backward()
        loss = model(*batch(2 * step + 1))
        loss.backward()
        losses_and_norms += [loss.item(), stretto.clip_grad_norm_(model, 0.5).item()]
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        losses_and_norms.append(model.eval()(*batch(99)).item())
    stretto.save_checkpoint(folder / f"at {first + steps}", model, optimizer, step=first + steps)
    return losses_and_norms


if __name__ == "__main__":
    print(losses(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), 2), flush=True)
