"""First calls in which one rank compiles for all; each function runs in one process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import stretto
import torch
from stretto.driver.compile import compile_program
from stretto.driver.compile.cached_programs import CachedPrograms
from stretto.driver.model.compiled_module import program_of
from stretto.driver.model.decorator import compile as stretto_compile
from torch import Tensor, nn

from .differing_ranks import made, step

WORKER = 0


class Compiles:
    """Counts the calls of `compile_capture` in this process; `fails` is what each raises."""

    def __init__(self, fails: BaseException | None = None, after_s: float = 0.0) -> None:
        self.count = 0
        self._plain, self._fails, self._after_s = compile_program.compile_capture, fails, after_s
        compile_program.compile_capture = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        time.sleep(self._after_s)
        if self._fails is not None:
            raise self._fails
        return self._plain(*args, **kwargs)


def trains(rank: int, cache: str = "off", late_s: float = 0.0) -> Any:
    """How often this rank compiled, its loss, and its program's hash; after that an inference call."""
    os.environ["STRETTO_CACHE"] = cache
    compiles = Compiles(after_s=late_s)
    model = made("tp=2")
    values = [step(model), program_of(model).hash]
    with torch.no_grad():
        model.eval()(torch.ones(4, 6))
    return compiles.count, [*values, program_of(model).hash]


def sizes(rank: int) -> Any:
    """Named sizes: a program for all, and the calls of two sizes."""
    compiles = Compiles()
    torch.manual_seed(0)
    model = stretto_compile(_Rows(), plan="mesh (dp=2)", dynamic={"x": {0: "batch"}})
    values = [float(model(torch.ones(rows, 6)).detach()) for rows in (4, 8)]
    symbolic = program_of(model).symbolic
    return compiles.count > 0, values, symbolic is None


class _Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).sum()


def fails(rank: int, how: str) -> Any:
    """The worker cannot compile; where the error is the user's, all catch it and go on."""
    error: BaseException = (
        stretto.StrettoError("E0402", "no such batch", help="pass another") if how == "refuses" else ValueError("a bug")
    )
    model = made("tp=2")
    compiles = Compiles(error if rank == WORKER else None)
    if how == "dies" and rank == WORKER:
        CachedPrograms.find = lambda self: os._exit(9)
    if how != "refuses":
        return step(model)
    try:
        step(model)
    except stretto.StrettoError as found:
        refused = found.render()
    compile_program.compile_capture = compiles._plain
    return refused, step(model) > 0


def differ(rank: int) -> Any:
    """Each rank has a forward of its own: no rank takes another's program."""
    model = made("tp=2")
    if rank != WORKER:
        type(model).forward = lambda self, x: self.down(self.up(x).relu()).square().sum()
    return step(model)


def entries(folder: Path) -> int:
    return len(list((folder / "programs").iterdir()))
