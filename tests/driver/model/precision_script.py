"""A float16 loop with a loss scale, for `python` (ranks as threads) and torchrun (processes). Its argument is the mesh.

Prints one JSON object: of each step the loss, the norm of the gradients, and the loss scale after it; and the dtypes
and the type of the parameters and their gradients.
"""

from __future__ import annotations

import json
import os
import sys

import stretto
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


class Model(nn.Module):
    """A feed-forward with a loss in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.down(F.gelu(self.up(x))).float(), x.float())


def main() -> None:
    torch.manual_seed(0)
    plan = f'mesh ({sys.argv[1]})\nshard "up" columns over tp\nshard "down" rows over tp\n'
    model = stretto.compile(Model(), plan=plan + "precision { params fp32  compute fp16  reduce fp32 }\n")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, backoff_factor=2.0**-12)
    steps = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 8))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = stretto.clip_grad_norm_(model, 0.5)
        scaler.step(optimizer)
        scaler.update()
        steps.append((loss.item(), float(norm) if torch.isfinite(norm) else None, scaler.get_scale()))
    weight = model.up.weight
    dtypes = [str(weight.dtype), str(weight.grad.dtype)]
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"steps": steps, "dtypes": dtypes, "parts": isinstance(weight, DTensor)}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
