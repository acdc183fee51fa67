"""Two entries of one state, written by hand: `add` changes it in place, `scaled` reads it."""

from __future__ import annotations

from dataclasses import replace

import torch
from stretto.runtime.named_entries.program_set import ProgramSet
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Output, Shard
from torch import Tensor

from ..tiny_programs import S, step

MESH = (("dp", 2), ("tp", 2))
ROWS = (Shard(0, ("tp",), 2, 4),)


def held(kind: str, name: str, slot: int, shards: tuple[Shard, ...] = ROWS) -> Input:
    return Input(name, kind, (4, 3), "float32", slot, shards)


def add(mesh: tuple[tuple[str, int], ...] = MESH) -> Program:
    """cache += x, count += 1; returns the new cache."""
    code = (
        replace(step("aten.add.Tensor", S(0), S(1), out=[3]), into=0),
        step("aten.add.Scalar", S(2), 1, out=[4]),
        step("aten.clone.default", S(3), out=[5]),
    )
    return Program(
        Manifest("infer", "float32", mesh),
        (
            held("state", "cache", 0), Input("x", "input", (4, 3), "float32", 1, ROWS, index=0),
            Input("count", "state", (), "int64", 2),
        ),
        (
            Output("y", "output", (4, 3), "float32", 5, ROWS, index=0),
            Output("cache", "state", (4, 3), "float32", 3, ROWS, index=0), Output("count", "state", (), "int64", 4),
        ),
        {"main": Function(6, (0, 1, 2), (5, 3, 4), code)},
        initial={"cache": torch.zeros(4, 3), "count": torch.zeros((), dtype=torch.int64)},
    )  # fmt: skip


def scaled(mesh: tuple[tuple[str, int], ...] = MESH) -> Program:
    """cache * weight + table; reads the state and does not change it."""
    code = (
        step("aten.mul.Tensor", S(0), S(1), out=[2]),
        step("aten.add.Tensor", S(2), S(3), out=[4]),
    )
    return Program(
        Manifest("infer", "float32", mesh),
        (
            held("state", "cache", 0), held("parameter", "weight", 1),
            Input("table", "constant", (3,), "float32", 3),
        ),
        (Output("y", "output", (4, 3), "float32", 4, ROWS, index=0),),
        {"main": Function(5, (0, 1, 3), (4,), code)},
        initial={"weight": torch.full((4, 3), 2.0), "table": torch.tensor([0.0, 0.5, 1.0])},
    )  # fmt: skip


def both(mesh: tuple[tuple[str, int], ...] = MESH) -> ProgramSet:
    return ProgramSet.of({"add": add(mesh), "scaled": scaled(mesh)})


def expected(total: Tensor) -> Tensor:
    """What `scaled` gives for a cache."""
    return 2 * total + torch.tensor([0.0, 0.5, 1.0])
