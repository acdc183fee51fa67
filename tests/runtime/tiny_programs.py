"""Tiny programs, written by hand, that the tests of the runtime share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from stretto.runtime.communicator import Communicator
from stretto.runtime.program.arguments import Slot, Value
from stretto.runtime.program.mesh import RankMesh
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Location, Output, Shard
from stretto.runtime.rank.executor import Executor
from stretto.runtime.threads.communicator import RankGroup
from stretto.runtime.threads.rank_pool import RankPool
from torch import Tensor

S = Slot
T = TypeVar("T")
F32 = "float32"


def step(
    op: str, *args: Value, out: Sequence[int | None] = (), free: Sequence[int] = (), loc: int | None = None, **kw: Value
) -> Instruction:
    """One instruction."""
    return Instruction(op, args, kw, tuple(out), tuple(free), loc)


def linear(ranks: int = 2, dtype: str = F32, width: int = 4) -> Program:
    """loss = sum((x @ w)^2) with w (width, 3) cut by rows over tp: x's columns are cut on the rank, products summed.

    Backward: dw = x^T @ 2 (x @ w) * tangent, on this rank's rows.
    """
    chunk = -(-width // ranks)
    rows = (Shard(0, ("tp",), chunk, width),)
    code = (
        step("rank.shard", S(1), axes=["tp"], dim=1, chunk=chunk, out=[2], loc=0),
        step("aten.mm.default", S(2), S(0), out=[3], loc=0),
        step("comm.all_reduce_start", S(3), axes=["tp"], reduce="sum", out=[4], free=[3], loc=1),
        step("comm.wait", S(4), out=[5], free=[4], loc=1),
        step("aten.pow.Tensor_Scalar", S(5), 2, out=[6]),
        step("aten.sum.default", S(6), out=[7], free=[6]),
        step("aten.mul.Tensor", S(5), S(8), out=[9], free=[8]),
        step("aten.mul.Scalar", S(9), 2.0, out=[10], free=[9]),
        step("aten.t.default", S(2), out=[11], free=[2]),
        step("aten.mm.default", S(11), S(10), out=[12], free=[11, 10], loc=2),
    )
    reference: list[Instruction] = [
        step("aten.mm.default", S(1), S(0), out=[2]),
        step("aten.pow.Tensor_Scalar", S(2), 2, out=[3]),
        step("aten.sum.default", S(3), out=[4]),
    ]
    return Program(
        manifest=Manifest(mode="train", dtype=dtype, mesh=(("tp", ranks),)),
        inputs=(
            Input("w", "parameter", (width, 3), dtype, 0, rows, aliases=("w",), requires_grad=True),
            Input("x", "input", (5, width), dtype, 1, index=0),
            Input("loss", "tangent", (), dtype, 8, index=0),
        ),
        outputs=(
            Output("loss", "output", (), dtype, 7, index=0),
            Output("y", "output", (5, 3), dtype, 5, index=1),
            Output("w", "gradient", (width, 3), dtype, 12, rows),
        ),
        functions={"main": Function(13, (0, 1, 8), (7, 5, 12), code, backward_at=6)},
        locations=(Location("model.py", 7, "proj"), Location("model.py", 8), Location("model.py", 9)),
        reference={
            "inputs": [
                {"name": "w", "kind": "parameter", "aliases": [], "shape": [width, 3], "dtype": dtype, "index": -1},
                {"name": "x", "kind": "input", "aliases": [], "shape": [5, width], "dtype": dtype, "index": 0},
            ],
            "outputs": [
                {"kind": "output", "name": "loss", "index": 0, "slot": 4},
                {"kind": "output", "name": "y", "index": 1, "slot": 2},
            ],
            "slots": 5,
            "code": [instruction.to_json() for instruction in reference],
        },
    )


def data_parallel(reduced: bool = True) -> Program:
    """loss = sum(x @ w) over a batch that dp cuts into 2, w replicated; the gradient is summed if `reduced`."""
    batch = (Shard(0, ("dp",), 2, 4),)
    total = [
        step("comm.all_reduce_start", S(7), axes=["dp"], reduce="sum", out=[8], free=[7]),
        step("comm.wait", S(8), out=[9], free=[8]),
    ]
    code = (
        step("aten.mm.default", S(1), S(0), out=[3]),
        step("aten.sum.default", S(3), out=[4]),
        step("comm.all_reduce_start", S(4), axes=["dp"], reduce="sum", out=[5]),
        step("comm.wait", S(5), out=[6]),
        step("aten.add.Scalar", S(10), 1.0, out=[11]),
        step("aten.expand.default", S(2), [2, 3], out=[12]),
        step("aten.t.default", S(1), out=[13]),
        step("aten.mm.default", S(13), S(12), out=[7]),
        *(total if reduced else [step("aten.clone.default", S(7), out=[9])]),
    )
    reference = [
        step("aten.matmul.default", S(2), S(0), out=[3]),
        step("aten.sum.default", S(3), out=[4]),
        step("aten.add_.Scalar", S(1), 1.0, out=[5]),
    ]
    return Program(
        manifest=Manifest(mode="train", dtype=F32, mesh=(("dp", 2),)),
        inputs=(
            Input("w", "parameter", (3, 3), F32, 0, requires_grad=True),
            Input("x", "input", (4, 3), F32, 1, batch, index=0),
            Input("loss", "tangent", (), F32, 2, index=0),
            Input("count", "buffer", (), F32, 10),
        ),
        outputs=(
            Output("loss", "output", (), F32, 6, index=0),
            Output("y", "output", (4, 3), F32, 3, batch, index=1),
            Output("w", "gradient", (3, 3), F32, 9),
            Output("count", "buffer", (), F32, 11),
        ),
        functions={"main": Function(14, (0, 1, 2, 10), (), code, backward_at=5)},
        reference={
            "inputs": [
                {"name": "w", "kind": "parameter", "aliases": [], "shape": [3, 3], "dtype": F32, "index": -1},
                {"name": "count", "kind": "buffer", "aliases": [], "shape": [], "dtype": F32, "index": -1},
                {"name": "x", "kind": "input", "aliases": [], "shape": [4, 3], "dtype": F32, "index": 0},
            ],
            "outputs": [
                {"kind": "output", "name": "loss", "index": 0, "slot": 4},
                {"kind": "output", "name": "y", "index": 1, "slot": 3},
                {"kind": "buffer", "name": "count", "index": 1, "slot": 1},
            ],
            "slots": 6,
            "code": [instruction.to_json() for instruction in reference],
        },
    )


def infer(
    code: Sequence[Instruction],
    shapes: Sequence[tuple[int, ...]],
    results: Sequence[int],
    mesh: tuple[tuple[str, int], ...] = (),
    functions: dict[str, Function] | None = None,
) -> Program:
    """Instructions on inputs of `shapes` in slots 0, 1, ..; the results' shapes are not checked by what runs here."""
    slots = 1 + max([len(shapes), *(slot for instruction in code for slot in instruction.writes())])
    inputs = tuple(Input(f"x{index}", "input", shape, F32, index, index=index) for index, shape in enumerate(shapes))
    outputs = tuple(Output(f"y{index}", "output", (), F32, slot, index=index) for index, slot in enumerate(results))
    main = Function(slots, tuple(range(len(shapes))), tuple(results), tuple(code))
    return Program(Manifest("infer", F32, mesh), inputs, outputs, {"main": main, **(functions or {})})


def without_types(program: Program) -> Program:
    """The program as if written by hand: it says nothing of its slots, so that its instructions may be edited."""
    functions = {name: replace(function, types=(), views=()) for name, function in program.functions.items()}
    return replace(program, functions=functions)


def run_alone(program: Program, *inputs: Tensor) -> list[Tensor]:
    """The outputs of a program for one rank."""
    return Executor(program, RankGroup(program.mesh).communicator(0)).forward(inputs)[0]


def on_ranks(mesh: tuple[tuple[str, int], ...], job: Callable[[Communicator], T], timeout_s: float = 20.0) -> list[T]:
    """`job(communicator)` on every rank of `mesh`, in rank order; raises the first failure."""
    group = RankGroup(RankMesh(mesh), timeout_s)
    pool = RankPool(group)
    try:
        return pool.run(lambda rank: job(group.communicator(rank)))
    finally:
        pool.close()


def numbers(*shape: int, start: int = 0) -> Tensor:
    """0, 1, 2, .. in `shape`."""
    count = int(torch.Size(shape).numel())
    return torch.arange(start, start + count, dtype=torch.float32).reshape(shape)
