"""Every collective over every set of axes of a 2-D mesh, against its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from stretto.ir.interpreter import InterpreterError, run
from torch import Tensor

from .texts import module

RANKS = [(dp, tp) for dp in range(2) for tp in range(3)]
GROUPS = [["dp"], ["tp"], ["dp", "tp"], ["tp", "dp"]]


def group(rank: int, axes: list[str]) -> list[int]:
    """The members of a rank's group over the axes, outermost first, spelt out."""
    dp, tp = RANKS[rank]
    dps = range(2) if "dp" in axes else [dp]
    tps = range(3) if "tp" in axes else [tp]
    if axes == ["tp", "dp"]:
        return [d * 3 + t for t in tps for d in dps]
    return [d * 3 + t for d in dps for t in tps]


def held(rows: int, columns: int) -> Tensor:
    """What the six ranks hold, one in each row of dim 0."""
    return torch.randn(6, rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def collective(name: str, axes: list[str], options: str, given: Tensor, rows: int, columns: int) -> Tensor:
    """What every rank gets of a collective, one in each row of dim 0, by the synchronous and the asynchronous form."""
    place = '{dp = "shard(0)", tp = "shard(0)"}'
    before = f"tensor<1x{given.shape[1]}x{given.shape[2]}xf64, {place}>"
    after = f"tensor<1x{rows}x{columns}xf64, {place}>"
    text = str(axes).replace("'", '"')
    body = f"""
      %0 = "comm.{name}"(%a) {{axes = {text}, {options}}} : ({before}) -> {after}
      %1 = "comm.{name}_start"(%a) {{axes = {text}, {options}}} : ({before}) -> !async.value<{after}>
      %2 = "comm.wait"(%1) : (!async.value<{after}>) -> {after}
      return %0, %2 : {after}, {after}"""
    now, later = run(module(f"%a: {before}", f"{after}, {after}", body), [given])
    assert torch.equal(now, later)
    return now


@pytest.mark.parametrize("axes", GROUPS, ids="_".join)
@pytest.mark.parametrize(("how", "combine"), [("sum", torch.sum), ("max", torch.amax), ("min", torch.amin)])
def test_all_reduce_gives_every_member_the_reduction(axes: list[str], how: str, combine: Callable[..., Tensor]) -> None:
    given = held(2, 3)
    built = collective("all_reduce", axes, f'reduce = "{how}"', given, 2, 3)
    for rank in range(6):
        torch.testing.assert_close(built[rank], combine(given[group(rank, axes)], 0))


@pytest.mark.parametrize("axes", GROUPS, ids="_".join)
@pytest.mark.parametrize("dim", [1, 2])
def test_all_gather_joins_in_the_order_of_the_axes(axes: list[str], dim: int) -> None:
    given = held(2, 3)
    size = len(group(0, axes))
    orders, columns = (2 * size, 3) if dim == 1 else (2, 3 * size)
    built = collective("all_gather", axes, f"dim = {dim} : i64", given, orders, columns)
    for rank in range(6):
        assert torch.equal(built[rank], torch.cat([given[r] for r in group(rank, axes)], dim - 1))


@pytest.mark.parametrize("axes", GROUPS, ids="_".join)
def test_reduce_scatter_gives_each_member_its_part_of_the_sum(axes: list[str]) -> None:
    given = held(12, 2)
    size = len(group(0, axes))
    built = collective("reduce_scatter", axes, 'dim = 1 : i64, reduce = "sum"', given, 12 // size, 2)
    for rank in range(6):
        members = group(rank, axes)
        part = given[members].sum(0).chunk(size, 0)[members.index(rank)]
        torch.testing.assert_close(built[rank], part)


@pytest.mark.parametrize("axes", GROUPS, ids="_".join)
def test_all_to_all_gives_each_member_its_part_of_every_tensor(axes: list[str]) -> None:
    given = held(6, 2)
    size = len(group(0, axes))
    built = collective("all_to_all", axes, "split_dim = 1 : i64, concat_dim = 2 : i64", given, 6 // size, 2 * size)
    for rank in range(6):
        members = group(rank, axes)
        parts = [given[r].chunk(size, 0)[members.index(rank)] for r in members]
        assert torch.equal(built[rank], torch.cat(parts, 1))


@pytest.mark.parametrize("axes", GROUPS, ids="_".join)
@pytest.mark.parametrize("shift", [1, -1, 2, 0, 7, -8])
def test_permute_gives_each_member_the_tensor_of_the_one_shift_before_it(axes: list[str], shift: int) -> None:
    given = held(2, 3)
    built = collective("permute", axes, f"shift = {shift} : i64", given, 2, 3)
    for rank in range(6):
        members = group(rank, axes)
        assert torch.equal(built[rank], given[members[(members.index(rank) - shift) % len(members)]])


@pytest.mark.parametrize("axes", GROUPS, ids="_".join)
def test_a_permute_and_the_opposite_one_give_back_what_was_held(axes: list[str]) -> None:
    given = held(2, 3)
    there = collective("permute", axes, "shift = 1 : i64", given, 2, 3)
    assert torch.equal(collective("permute", axes, "shift = -1 : i64", there, 2, 3), given)


def test_offset_shard_and_mask_follow_the_coordinate() -> None:
    place = '{dp = "shard(0)", tp = "shard(0)"}'
    offsets, parts = f"tensor<1xi64, {place}>", f"tensor<2xf32, {place}>"
    body = f"""
      %0 = "comm.offset"() {{axes = ["tp"], chunk = 10 : i64}} : () -> tensor<i64>
      %1 = "aten.reshape_default"(%0) {{shape = array<i64: 1>}} : (tensor<i64>) -> {offsets}
      %2 = "comm.shard"(%a) {{axes = ["tp"], dim = 0 : i64, chunk = 2 : i64}} : (tensor<5xf32>) -> {parts}
      %3 = "comm.mask"(%2) {{axes = ["tp"], dim = 0 : i64, chunk = 2 : i64, extent = 5 : i64, fill = 9.0 : f64}}
        : ({parts}) -> {parts}
      return %1, %2, %3 : {offsets}, {parts}, {parts}"""
    local = module("%a: tensor<5xf32>", f"{offsets}, {parts}, {parts}", body)
    starts, shards, masked = run(local, [torch.arange(5.0)])
    assert starts.tolist() == [0, 10, 20] * 2
    assert shards.nan_to_num(-1).tolist() == [0, 1, 2, 3, 4, -1] * 2
    assert masked.tolist() == [0, 1, 2, 3, 4, 9] * 2


def test_a_dim_that_a_group_does_not_divide_cannot_be_scattered() -> None:
    body = """
      %0 = "comm.reduce_scatter"(%a) {axes = ["tp"], dim = 0 : i64, reduce = "sum"}
        : (tensor<4xf32>) -> tensor<2xf32>
      return %0 : tensor<2xf32>"""
    with pytest.raises(InterpreterError, match=r"(?s)E0653.*4 elements, which 3 ranks do not divide"):
        run(module("%a: tensor<4xf32>", "tensor<2xf32>", body), [torch.ones(4)])


PLACED = '{dp = "shard(0)", tp = "shard(0)"}'
BUCKETS = {
    "all_reduce": ('reduce = "max"', 'reduce = "max"', "1x2x3xf64", "1x3x2xf64"),
    "all_gather": ("dim = {} : i64", "dims = array<i64: 2, 1>", "1x2x9xf64", "1x9x2xf64"),
    "reduce_scatter": (
        'dim = {} : i64, reduce = "sum"',
        'dims = array<i64: 2, 1>, reduce = "sum"',
        "1x2x1xf64",
        "1x1x2xf64",
    ),
}


@pytest.mark.parametrize("kind", BUCKETS)
@pytest.mark.parametrize("is_started", [False, True], ids=["at once", "started"])
def test_a_bucket_gives_each_tensor_what_its_own_collective_gives(kind: str, is_started: bool) -> None:
    alone, together, *shapes = BUCKETS[kind]
    taken = [f"tensor<1x2x3xf64, {PLACED}>", f"tensor<1x3x2xf64, {PLACED}>"]
    given = [f"tensor<{shape}, {PLACED}>" for shape in shapes]
    futures = [f"!async.value<{type_}>" for type_ in given]
    listed, name = (futures, f"{kind}_coalesced_start") if is_started else (given, f"{kind}_coalesced")
    waits = [f'%w{i} = "comm.wait"(%f#{i}) : ({futures[i]}) -> {given[i]}' for i in (1, 0)] if is_started else []
    made = ["%w0", "%w1"] if is_started else ["%f#0", "%f#1"]
    body = f"""
      %0 = "comm.{kind}"(%a) {{axes = ["tp"], {alone.format(2)}}} : ({taken[0]}) -> {given[0]}
      %1 = "comm.{kind}"(%b) {{axes = ["tp"], {alone.format(1)}}} : ({taken[1]}) -> {given[1]}
      %t = builtin.unrealized_conversion_cast %a, %b : {", ".join(taken)} to tuple<{", ".join(taken)}>
      %s = "comm.{name}"(%t) {{axes = ["tp"], {together}}} : (tuple<{", ".join(taken)}>) -> tuple<{", ".join(listed)}>
      %f:2 = builtin.unrealized_conversion_cast %s : tuple<{", ".join(listed)}> to {", ".join(listed)}
      {chr(10).join(waits)}
      return %0, %1, {", ".join(made)} : {", ".join(given)}, {", ".join(given)}"""
    results = ", ".join([*given, *given])
    first, second = held(2, 3), held(3, 2)
    one, other, *bucket = run(module(f"%a: {taken[0]}, %b: {taken[1]}", results, body), [first, second])
    assert torch.equal(bucket[0], one) and torch.equal(bucket[1], other)
