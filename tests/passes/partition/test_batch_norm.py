"""Batch norm over a batch that ranks share: what each computes is what one device computes on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stretto.ir.bindings import mlir
from stretto.ir.dialects.context import context
from stretto.ir.interpreter import Padding, run
from stretto.ir.module import Module, build_function, entry, finish_function, operations
from stretto.ir.operations import Call, build, read
from stretto.ir.placement import Mesh, Placement, Shard
from stretto.ir.types import TensorType, to_mlir
from stretto.passes.manager import PassManager
from stretto.passes.partition.partition_tensors import PartitionTensors
from torch import Tensor

EPS = 1e-5
MESH: Mesh = (("dp", 2), ("tp", 2))
FORWARD = "aten._native_batch_norm_legit_functional.default"
BACKWARD = "aten.native_batch_norm_backward.default"


def f(*shape: int) -> Tensor:
    """Random numbers."""
    return torch.randn(*shape, dtype=torch.float64)


def forward(*shape: int) -> tuple[str, list[Tensor], list[Any]]:
    """A training step's norm with weight, bias and running statistics."""
    c = shape[1]
    return FORWARD, [f(*shape), f(c), f(c), f(c), f(c).abs()], [True, 0.1, EPS]


def backward(*shape: int) -> tuple[str, list[Tensor], list[Any]]:
    """Its backward."""
    _, (x, weight, bias, mean, variance), rest = forward(*shape)
    _, saved, deviation, *_ = torch.ops.aten._native_batch_norm_legit_functional(x, weight, bias, mean, variance, *rest)
    return BACKWARD, [f(*shape), x, weight, mean, variance, saved, deviation], [True, EPS, [True, True, True]]


def module_of(
    op: str, operands: list[Tensor], constants: list[Any], images: int, dim: int, *, channels: bool
) -> Module:
    """One call whose first `images` operands are cut on `dim` over dp, and perhaps channels over tp, partitioned."""
    tensors = [*operands, *torch_op(op)(*operands, *constants)]
    module = Module.empty(mesh=MESH)
    types = []
    for index, tensor in enumerate(tensors):
        is_image = index < images or index == len(operands)
        on = {"dp": Shard(dim)} if is_image else {}
        on |= {"tp": Shard(1 if is_image else 0)} if channels else {}
        placement = Placement.of(tensor.dim(), dict(on), MESH)
        types.append(to_mlir(TensorType(tensor.dtype, tuple(tensor.shape)).placed(placement, MESH)))
    main = build_function(module, "main", types[: len(operands)])
    with context(), mlir.Location.unknown() as loc, mlir.InsertionPoint(entry(main)):
        results = build(Call(op, (*entry(main).arguments, *constants)), types[len(operands) :], loc)
    finish_function(main, results)
    PassManager([PartitionTensors()]).run(module)
    return module


def torch_op(name: str) -> Any:
    """Torch's op by its name here."""
    _, base, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, base), overload)


@pytest.mark.parametrize("channels", [False, True], ids=["batch", "batch and channels"])
@pytest.mark.parametrize(("shape", "dim"), [((4, 6), 0), ((5, 4, 3), 0), ((2, 3, 7), 2), ((3, 5, 2, 2), 0)], ids=str)
@pytest.mark.parametrize("make", [forward, backward])
def test_statistics_are_those_of_the_whole_batch(make: Any, shape: tuple[int, ...], dim: int, channels: bool) -> None:
    torch.manual_seed(6)
    op, operands, constants = make(*shape)
    module = module_of(op, operands, constants, 1 if make is forward else 2, dim, channels=channels)
    results = run(module, operands, padding=Padding.NAN)
    for actual, expected in zip(results, torch_op(op)(*operands, *constants), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_one_number_a_channel_crosses_ranks() -> None:
    op, operands, constants = forward(4, 6, 8, 8)
    module = module_of(op, operands, constants, 1, 0, channels=False)
    calls = [read(op) for op in operations(module.functions()["main"])]
    sent = [call for call in calls if call is not None and call.name.startswith("comm.")]
    assert [(call.name, tuple(call.values()[0].type.shape)) for call in sent] == [("comm.all_reduce", (6,))] * 2
