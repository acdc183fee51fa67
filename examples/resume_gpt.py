"""Train a byte-level GPT under one plan, save it, and go on under another, on another number of ranks, and under none.

    python examples/resume_gpt.py

trains under (dp=2, tp=2), saves half-way, and trains on; then two fresh models are filled from the checkpoint and
trained on, one under (tp=4), one by plain PyTorch. The losses after the checkpoint stand side by side, and are equal.

The three parts can be runs of their own, of which the later two find the checkpoint of the first:

    torchrun --nproc-per-node 4 examples/resume_gpt.py --folder here --only "dp=2, tp=2"
    torchrun --nproc-per-node 2 examples/resume_gpt.py --folder here --only "tp=2"
    python examples/resume_gpt.py --folder here --only plain
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import stretto
import torch
from gpt import GPT, Config
from text import standard_library, windows
from torch import nn

PLAN = """
mesh ({mesh})
shard "*.{{q,k,v}}_proj", "*.up_proj"   columns over tp
shard "*.o_proj", "*.down_proj"         rows    over tp
shard "*embed_tokens", "lm_head"        vocab   over tp
"""
FIRST, PLAIN = "dp=2, tp=2", "plain"
BATCH, SEQ = 4, 32
TOLERANCE = 1e-9


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> dict[int, float]:
    """The losses of steps `first` to `last`, the last one left out; which bytes a step sees follows from its number."""
    losses = {}
    batches = list(windows(standard_library(), BATCH, SEQ + 1, last, seed=0))
    for step in range(first, last):
        tokens, targets = batches[step][:, :-1].contiguous(), batches[step][:, 1:].contiguous()
        loss = model(tokens, targets)
        loss.backward()
        stretto.clip_grad_norm_(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses[step] = loss.item()
    return losses


def part(mesh: str, folder: Path, steps: int) -> dict[int, float]:
    """The losses after the checkpoint, which the part under `FIRST` writes half-way and the others begin with."""
    torch.manual_seed(0 if mesh == FIRST else 1)  # the others do not begin with the weights of the first
    model: nn.Module = GPT(Config(hidden=64, layers=2, heads=4, positions=SEQ)).double()
    if mesh != PLAIN:
        model = stretto.compile(model, plan=PLAN.format(mesh=mesh))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    half = steps // 2
    if mesh == FIRST:
        train(model, optimizer, 0, half)
        stretto.save_checkpoint(folder / "half", model, optimizer, step=half)
    else:
        half = stretto.load_checkpoint(folder / "half", model, optimizer)["step"]
    return train(model, optimizer, half, steps)


def show(losses: dict[str, dict[int, float]]) -> None:
    """Print them side by side; ends the script with 1 where they differ."""
    if os.environ.get("RANK", "0") != "0":
        return
    print("  step" + "".join(f"{mesh:>22}" for mesh in losses))
    first = next(iter(losses.values()))
    for step in first:
        print(f"{step + 1:>6}" + "".join(f"{run[step]:>22.15f}" for run in losses.values()))
    if len(losses) > 1:
        worst = max(abs(run[step] - first[step]) / first[step] for run in losses.values() for step in first)
        if not worst <= TOLERANCE:
            sys.exit(f"the losses differ by up to {worst:.1e}")
        print(f"all {len(losses)} go on alike, to {TOLERANCE:g}")


def main() -> None:
    """All three parts, or one."""
    options = argparse.ArgumentParser(description="Save under one plan, resume under others.")
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--folder", type=Path, help="where the checkpoint is; default: a folder that is removed after")
    options.add_argument("--only", metavar="MESH", help='one part: "dp=2, tp=2" saves; another mesh, or plain, resumes')
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        meshes = [arguments.only] if arguments.only else [FIRST, "tp=4", PLAIN]
        show({mesh: part(mesh, folder, arguments.steps) for mesh in meshes})


if __name__ == "__main__":
    main()
