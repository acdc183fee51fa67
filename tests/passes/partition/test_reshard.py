"""Any placement to any other: what ranks hold afterwards is the same tensor, padding full of NaN on the way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stretto.ir.bindings import mlir
from stretto.ir.dialects.context import context
from stretto.ir.interpreter import Padding, run
from stretto.ir.module import Module, build_function, entry, finish_function, operations
from stretto.ir.operations import Call, build, read
from stretto.ir.placement import AxisPlacement, Mesh, Partial, Placement, Reduce, Replicate, Shard
from stretto.ir.types import TensorType, to_mlir
from stretto.passes.manager import PassManager
from stretto.passes.partition.partition_tensors import PartitionTensors

MESHES: list[Mesh] = [(("a", 2), ("b", 2)), (("a", 2), ("b", 3)), (("a", 1), ("b", 2), ("c", 2))]
ByAxis = dict[str, AxisPlacement]


def reshard(shape: tuple[int, ...], source: ByAxis, target: ByAxis, mesh: Mesh) -> Module:
    """A module of one `comm.reshard`, partitioned."""
    module = Module.empty(mesh=mesh)
    types = [
        to_mlir(TensorType(torch.float64, shape).placed(placement(len(shape), p, mesh), mesh)) for p in (source, target)
    ]
    main = build_function(module, "main", types[:1])
    with context(), mlir.Location.unknown() as loc, mlir.InsertionPoint(entry(main)):
        results = build(Call("comm.reshard", tuple(entry(main).arguments)), types[1:], loc)
    finish_function(main, results)
    PassManager([PartitionTensors()]).run(module)
    return module


def placement(rank: int, by_axis: ByAxis, mesh: Mesh) -> Placement:
    """The placement in which axes of one dim nest in the order of the mapping."""
    order = Placement.of_shards(rank, {axis: p.dim for axis, p in by_axis.items() if isinstance(p, Shard)})
    return Placement.of(rank, by_axis, mesh, [order])


def placements(rank: int, mesh: Mesh, reduce: Reduce | None) -> st.SearchStrategy[ByAxis]:
    """A placement on each axis, in any order; partial ones all of one kind, none where `reduce` is None."""
    choices: list[AxisPlacement] = [Replicate(), *(Shard(d) for d in range(rank))]
    if reduce is not None:
        choices.append(Partial(reduce))
    in_order = st.fixed_dictionaries({axis: st.sampled_from(choices) for axis, _ in mesh})
    return in_order.flatmap(lambda by_axis: st.permutations([*by_axis.items()]).map(dict))


@st.composite
def moves(draw: st.DrawFn) -> tuple[tuple[int, ...], ByAxis, ByAxis, Mesh]:
    """A shape, two placements and a mesh; a target is partial only by sums, and by others only where the source is."""
    mesh = draw(st.sampled_from(MESHES))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    source = draw(placements(len(shape), mesh, draw(st.sampled_from(Reduce))))
    target = draw(placements(len(shape), mesh, Reduce.SUM))
    for axis, _ in mesh:
        if isinstance(source[axis], Partial) and isinstance(target[axis], Partial):
            target[axis] = source[axis]
    if len({p for p in (*source.values(), *target.values()) if isinstance(p, Partial)}) > 1:
        target = {axis: p if not isinstance(p, Partial) else Replicate() for axis, p in target.items()}
    return shape, source, target, mesh


@settings(max_examples=200, deadline=None, derandomize=True)
@given(moves())
def test_a_tensor_is_the_same_wherever_it_is_moved(move: tuple[tuple[int, ...], ByAxis, ByAxis, Mesh]) -> None:
    shape, source, target, mesh = move
    module = reshard(shape, source, target, mesh)
    x = torch.randn(shape, dtype=torch.float64)
    [found] = run(module, [x], padding=Padding.NAN)
    assert torch.allclose(found, x, rtol=0, atol=1e-12), f"{shape} {source} -> {target}\n{module}"


NESTS: list[ByAxis] = [
    {"a": Shard(0), "b": Shard(0)}, {"b": Shard(0), "a": Shard(0)}, {"a": Shard(0)}, {"b": Shard(0)}, {}
]  # fmt: skip


@pytest.mark.parametrize("target", NESTS)
@pytest.mark.parametrize("source", NESTS)
def test_chunks_that_do_not_nest_are_gathered_whole(source: ByAxis, target: ByAxis) -> None:
    module = reshard((7,), source, target, MESHES[1])
    x = torch.arange(7, dtype=torch.float64)
    assert torch.equal(run(module, [x])[0], x)


BLOCKS: list[ByAxis] = [
    {"a": Shard(0, (6, 2, 4))}, {"a": Shard(0, (4, 8)), "b": Shard(0, (4, 8))}, {"b": Shard(0, (4, 8))},
    {"b": Shard(0, (4, 8)), "a": Shard(0, (4, 8))}, {"a": Shard(1), "b": Shard(0, (6, 2, 4))},
    {"a": Shard(0)}, {"b": Shard(0), "a": Shard(0)}, {"a": Shard(1), "b": Shard(0)}, {"b": Partial()}, {},
]  # fmt: skip


@pytest.mark.parametrize("target", BLOCKS)
@pytest.mark.parametrize("source", BLOCKS)
def test_blocks_are_put_in_order_and_taken_apart(source: ByAxis, target: ByAxis) -> None:
    module = reshard((12, 2), source, target, MESHES[0])
    x = torch.randn(12, 2, dtype=torch.float64)
    assert torch.equal(run(module, [x])[0], x), str(module)


ZIGZAGS: list[ByAxis] = [
    {"a": Shard(0, (8, -8)), "b": Shard(0, (8, -8))}, {"a": Shard(0, (8, -8)), "b": Shard(1)},
    {"a": Shard(0, (4, -12)), "b": Shard(0, (4, -12))}, {"a": Shard(0, (4, -12)), "b": Shard(1)},
    {"a": Shard(0, (8, -8))}, {},
]  # fmt: skip


@pytest.mark.parametrize("target", ZIGZAGS)
@pytest.mark.parametrize("source", ZIGZAGS)
def test_an_inner_axis_of_a_zigzag_moves_to_another_dim_by_one_exchange(source: ByAxis, target: ByAxis) -> None:
    module = reshard((16, 4), source, target, MESHES[0])
    x = torch.randn(16, 4, dtype=torch.float64)
    assert torch.equal(run(module, [x])[0], x), str(module)
    names = [call.name for op in operations(module.functions()["main"]) if (call := read(op)) is not None]
    if source != target and source.get("a") == target.get("a") and {*source} == {*target} == {"a", "b"}:
        assert [name for name in names if name.startswith("comm.")] == ["comm.all_to_all"]


def test_sums_over_two_axes_are_scattered_in_the_order_in_which_the_target_nests() -> None:
    module = reshard((8,), {"a": Partial(), "b": Partial()}, {"b": Shard(0), "a": Shard(0)}, MESHES[0])
    calls = [call for op in operations(module.functions()["main"]) if (call := read(op)) is not None]
    assert [(call.name, call.args[1]) for call in calls] == [
        ("comm.reduce_scatter", ["b"]),
        ("comm.reduce_scatter", ["a"]),
    ]


def test_what_is_in_place_already_needs_nothing() -> None:
    module = reshard((4, 6), {"a": Shard(0), "b": Partial()}, {"a": Shard(0), "b": Partial()}, MESHES[0])
    assert [call for op in operations(module.functions()["main"]) if (call := read(op)) is not None] == []
