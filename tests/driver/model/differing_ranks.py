"""Steps in which one rank does what the others do not; each function runs in one process."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path
from typing import Any

import stretto
import torch
from torch import Tensor, nn

ODD = 1
"""The rank that differs."""


class Net(nn.Module):
    """Two layers and a loss."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, width), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 6) -> a number."""
        if self.training:
            x = x * 1.5
        return self.down(self.up(x).relu()).square().mean()


def made(mesh: str, width: int = 8) -> Any:
    torch.manual_seed(0)
    return stretto.compile(
        Net(width), plan=f"mesh ({mesh})\n" + ('shard "up" columns over tp\n' if "tp" in mesh else "")
    )


def step(model: Any, rows: int = 4) -> float:
    loss = model(torch.ones(rows, 6))
    loss.backward()
    return float(loss.detach())


def differs(rank: int, kind: str, mesh: str = "tp=2", folder: str = "") -> Any:
    """Two steps alike, then one in which a rank differs."""
    if kind == "fails before its first step" and rank == ODD:
        raise ValueError("no data")
    model = made(mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        step(model)
        optimizer.step()
    if kind == "known eval":
        with torch.no_grad():
            model.eval()(torch.ones(4, 6))
        step(model.train())
    if rank == ODD:
        return _differ(kind, model, folder)
    return step(model)


def _differ(kind: str, model: Any, folder: str) -> Any:
    match kind:
        case "shape":
            step(model, rows=8)
        case "eval":
            step(model.eval())
        case "known eval":
            with torch.no_grad():
                model.eval()(torch.ones(4, 6))
            step(model.train())
        case "no_sync":
            with model.no_sync():
                step(model)
            step(model)
        case "frozen":
            model.up.weight.requires_grad_(False)
            step(model)
        case "clip":
            stretto.clip_grad_norm_(model, 1.0)
        case "save":
            stretto.save_checkpoint(Path(folder) / "own", model)
        case "full_tensor":
            model.up.weight.full_tensor()
        case "bad argument":
            with contextlib.suppress(stretto.StrettoError):
                model(torch.ones(4, 6), "more")
            step(model)
        case "raise":
            model(torch.ones(4, 6), "more")
        case "end":
            return "ended"
        case "late":
            time.sleep(8)
        case "kill":
            os.kill(os.getpid(), 9)
    return None


def recovers(rank: int) -> Any:
    """All ranks make the same mistake, catch it and go on."""
    model = made("tp=2")
    codes = []
    for wrong in ("not a tensor", object()):
        try:
            model(torch.ones(4, 6), wrong)
        except stretto.StrettoError as error:
            codes.append(error.code)
        codes.append(round(step(model), 3))
    return codes


def saves(rank: int, folder: str, writer_fails: bool) -> Any:
    """A checkpoint that cannot be written, an error that all catch, and one that can."""
    model = made("tp=2")
    step(model)
    place = Path(folder) / ("file" if writer_fails else "") / "last"
    try:
        stretto.save_checkpoint(place, model)
        said = "saved"
    except stretto.StrettoError as error:
        said = f"{error.code}: {error.message}"
    stretto.save_checkpoint(Path(folder) / "other", model)
    return [said, step(model) > 0, sorted(path.name for path in Path(folder).iterdir())]


def saves_on_a_full_disk(rank: int, folder: str) -> Any:
    """A checkpoint of which one rank's files may not grow, then one without that limit."""
    model = made("tp=2", width=600)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == ODD:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        stretto.save_checkpoint(Path(folder) / "last", model)
        said = "saved"
    except stretto.StrettoError as error:
        said = f"{error.code}: {error.message}"
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = sorted(path.name for path in Path(folder).iterdir())
    model.up.weight.full_tensor()  # nobody saves before all have looked
    stretto.save_checkpoint(Path(folder) / "last", model)
    return [said, left, sorted(path.name for path in Path(folder).iterdir())]


def forks(rank: int) -> Any:
    """A process forked from a rank calls the model."""
    model = made("tp=2")
    step(model)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            step(model)
            said = "it ran"
        except stretto.StrettoError as error:
            said = error.code
        os.write(writer, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    return [os.read(reader, 100).decode(), step(model) > 0]
