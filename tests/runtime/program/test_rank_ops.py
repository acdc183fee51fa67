"""Chunks, offsets and masks of ranks, where the chunks are even and where they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stretto.runtime.communicator import Communicator
from stretto.runtime.philox import Part, RngState, draw
from stretto.runtime.program.mesh import RankMesh
from stretto.runtime.program.rank_ops import RankOps
from stretto.runtime.program.records import Shard
from stretto.runtime.rank.shards import in_order, local_shape, local_tensor, valid_part, windows
from torch import Tensor

from ..tiny_programs import numbers, on_ranks

CPU = torch.device("cpu")
GRID = (("dp", 2), ("tp", 2))


@pytest.mark.parametrize("extent", [8, 7, 5, 2, 1])
def test_chunks_are_padded_with_zeros_and_masked_with_a_fill(extent: int) -> None:
    chunk = -(-extent // 4)
    whole = numbers(2, extent, start=1)

    def job(communicator: Communicator) -> tuple[Tensor, Tensor, int]:
        ops = RankOps(communicator, CPU)
        mine = ops.shard(whole, ("dp", "tp"), 1, chunk)
        return mine, ops.mask(mine, ("dp", "tp"), 1, chunk, extent, -9.0), int(ops.offset(("dp", "tp"), chunk))

    results = on_ranks(GRID, job)
    assert [offset for _, _, offset in results] == [rank * chunk for rank in range(4)]
    padding = torch.zeros(2, 4 * chunk - extent)
    assert torch.equal(torch.cat([mine for mine, _, _ in results], 1), torch.cat([whole, padding], 1))
    assert torch.equal(torch.cat([masked for _, masked, _ in results], 1), torch.cat([whole, padding - 9], 1))


def test_the_parts_that_ranks_draw_make_the_whole_uneven_ones_too() -> None:
    state = RngState(seed=4, step=1).tensor()
    number = torch.tensor(3)

    def job(communicator: Communicator) -> Tensor:
        return RankOps(communicator, CPU).random(state, number, [5, 3], ["tp,dp", ""], [2, 3], None)

    parts = on_ranks(GRID, job)
    ordered = [parts[rank] for rank in (0, 2, 1, 3)]
    assert torch.equal(torch.cat(ordered)[:5], draw(state, 3, Part.whole((5, 3))))


def test_the_order_of_the_axes_is_the_order_of_the_chunks() -> None:
    whole = numbers(4)

    def job(communicator: Communicator) -> tuple[float, float]:
        ops = RankOps(communicator, CPU)
        chunk, two = ops.shard(whole, ("dp", "tp"), 0, 1), ops.shard(whole, ("tp", "dp"), 0, 1)
        return float(chunk), float(two)

    assert on_ranks(GRID, job) == [(0, 0), (1, 2), (2, 1), (3, 3)]


def test_a_mask_leaves_what_it_is_given_alone_and_takes_integers_and_booleans() -> None:
    def job(communicator: Communicator) -> None:
        ops = RankOps(communicator, CPU)
        tensor = torch.ones(2, dtype=torch.int64)
        masked = ops.mask(tensor, ("tp",), 0, 2, 3, -100)
        assert tensor.tolist() == [1, 1]
        assert masked.tolist() == ([1, 1] if communicator.rank == 0 else [1, -100])
        assert ops.mask(torch.zeros(2, dtype=torch.bool), ("tp",), 0, 2, 2, True).any() == (communicator.rank == 1)

    on_ranks((("tp", 2),), job)


def test_a_negative_dim_counts_from_the_end() -> None:
    def job(communicator: Communicator) -> Tensor:
        return RankOps(communicator, CPU).shard(numbers(2, 3), ("tp",), -1, 2)

    assert on_ranks((("tp", 2),), job)[1].tolist() == [[2, 0], [5, 0]]


def test_windows_of_all_ranks_put_a_tensor_together_again() -> None:
    mesh = RankMesh((("a", 2), ("b", 3), ("c", 2)))
    last = Shard(2, ("c", "a"), 4, 16)
    for of_last in (last, replace(last, blocks=(8, 4, 4)), Shard(2, ("c", "a"), 4, 13)):
        shards = (Shard(0, ("b",), 2, 5), of_last)
        whole, again = torch.randn(5, 2, of_last.extent), torch.empty(5, 2, of_last.extent)
        for rank in range(12):
            local = local_tensor(whole, shards, mesh, rank)
            assert tuple(local.shape) == local_shape(whole.shape, shards)
            assert sum(own.numel() for _, own in windows(whole, local, shards, mesh, rank)) == (
                valid_part(local, shards, mesh, rank).numel()
            )
            for window, own in windows(again, local, shards, mesh, rank):
                window.copy_(own)
        assert torch.equal(whole, again)


def test_a_rank_has_its_chunk_of_each_block_and_all_ranks_parts_are_put_in_order() -> None:
    mesh, shard = RankMesh((("tp", 2),)), Shard(0, ("tp",), 4, 8, (4, 2, 2))
    parts = [local_tensor(torch.arange(8), (shard,), mesh, rank) for rank in range(2)]
    assert [part.tolist() for part in parts] == [[0, 1, 4, 6], [2, 3, 5, 7]]
    assert in_order(torch.cat(parts), shard, 2).tolist() == [*range(8)]


def test_an_even_cut_is_a_view_and_an_uneven_one_is_not() -> None:
    mesh = RankMesh((("tp", 2),))
    whole = torch.zeros(5)
    local_tensor(whole, (Shard(0, ("tp",), 3, 5),), mesh, 0)[0] = 1
    local_tensor(whole, (Shard(0, ("tp",), 3, 5),), mesh, 1)[0] = 1
    assert whole.tolist() == [1, 0, 0, 0, 0]
