"""Each rank's part of a global input, and the global tensor of all ranks' results, by the program's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from ...ir.interpreter.blocks import chunks_of_blocks, put_chunks
from ...ir.interpreter.cutting import check_agree
from ...ir.interpreter.errors import INPUTS, REPLICAS, WRONG_TYPE, InterpreterError
from ...ir.interpreter.grid import Grid
from ...ir.interpreter.padding import Padding, chunk_of
from ...ir.interpreter.precision import Floats
from ...runtime.program.arguments import DTYPES
from ...runtime.program.records import Input, Output, Shard

FLOATS = Floats.FLOAT64
"""The precision of all values."""


def port_name(record: Input | Output) -> str:
    """An input or output in messages: "gradient proj.weight", "output 0"."""
    return f"{record.kind} {record.name or record.index}"


def local_input(record: Input, value: Tensor, rank: int, grid: Grid) -> Tensor:
    """A rank's part of a global input. E0651 where the value has another shape or dtype than the record."""
    dtype = FLOATS.of(DTYPES[record.dtype])
    raised = value.to(FLOATS.of(value.dtype))
    if tuple(raised.shape) != record.shape or raised.dtype != dtype:
        found = f"{value.dtype} {tuple(value.shape)}"
        raise InterpreterError(
            INPUTS, f'input "{port_name(record)}" is {found}, but the program takes {dtype} {record.shape}'
        )
    for shard in record.shards:
        coordinate, axes = grid.coordinate(rank, list(shard.axes)), list(shard.axes)
        if shard.blocks:
            raised = chunks_of_blocks(raised, shard.dim, shard.blocks, coordinate, grid.size(axes))
            continue
        raised = chunk_of(raised, shard.dim, coordinate, shard.chunk, Padding.NAN)
    return raised


def joined(record: Output, by_rank: Mapping[int, Tensor], grid: Grid) -> Tensor:
    """The global tensor of the ranks that return it, summed over the axes that are left to the caller.

    Errors: E0654 for a part of another shape or dtype than the record says, E0659 where replicas differ.
    """
    for rank, part in by_rank.items():
        _check_part(record, part, rank)
    sharded = [axis for shard in record.shards for axis in shard.axes]
    others = [axis for axis, _ in grid.mesh if axis not in (*sharded, *record.unreduced_over)]
    windows: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for rank in by_rank:
        position = tuple(grid.coordinate(rank, list(shard.axes)) for shard in record.shards)
        windows.setdefault(position, {}).setdefault(grid.coordinate(rank, others), []).append(rank)
    dtype = next(iter(by_rank.values())).dtype
    whole = torch.full(record.shape, float("nan") if dtype.is_floating_point else 0, dtype=dtype)
    for position, replicas in windows.items():
        values = [
            (ranks[0], _window_of_part(_summed(by_rank, ranks), record.shards, position)) for ranks in replicas.values()
        ]
        first_rank, first = values[0]
        for rank, other in values[1:]:
            check_agree(first, other, f"ranks {first_rank} and {rank}", port_name(record))
        _window_of_whole(whole, record.shards, position).copy_(first)
    _check_covered(record, len(windows), grid)
    for shard in record.shards:
        whole = _in_order(whole, shard, grid.size(list(shard.axes)))
    return whole


def _in_order(chunks: Tensor, shard: Shard, parts: int) -> Tensor:
    """The global tensor, where parts have chunks of blocks; else as it is."""
    if not shard.blocks:
        return chunks
    whole = torch.empty_like(chunks)
    for coordinate in range(parts):
        own = chunks.narrow(shard.dim, coordinate * shard.chunk, shard.chunk)
        put_chunks(whole, shard.dim, shard.blocks, coordinate, parts, own)
    return whole


def _summed(by_rank: Mapping[int, Tensor], ranks: Sequence[int]) -> Tensor:
    total = by_rank[ranks[0]]
    for rank in ranks[1:]:
        total = total + by_rank[rank]
    return total


def _check_part(record: Output, part: Tensor, rank: int) -> None:
    shape = list(record.shape)
    for shard in record.shards:
        shape[shard.dim] = shard.chunk
    dtype = FLOATS.of(DTYPES[record.dtype])
    if (tuple(part.shape), part.dtype) != (tuple(shape), dtype):
        raise InterpreterError(
            WRONG_TYPE,
            f"rank {rank} returns {part.dtype} {tuple(part.shape)} as {port_name(record)}, "
            f"but the program says {dtype} {tuple(shape)}",
        )


def _check_covered(record: Output, found: int, grid: Grid) -> None:
    """Raise E0659 where no rank returns some part of the tensor."""
    expected = 1
    for shard in record.shards:
        expected *= grid.size(list(shard.axes))
    if found != expected:
        axes = ", ".join(chain.from_iterable(shard.axes for shard in record.shards))
        raise InterpreterError(
            REPLICAS, f"{port_name(record)} is sharded over {axes}: {found} of {expected} parts are returned"
        )


def _window_of_part(part: Tensor, shards: Sequence[Shard], position: Sequence[int]) -> Tensor:
    """The valid elements of a part."""
    for shard, coordinate in zip(shards, position, strict=True):
        part = part.narrow(shard.dim, 0, _valid(shard, coordinate))
    return part


def _window_of_whole(whole: Tensor, shards: Sequence[Shard], position: Sequence[int]) -> Tensor:
    for shard, coordinate in zip(shards, position, strict=True):
        start = min(coordinate * shard.chunk, shard.extent)
        whole = whole.narrow(shard.dim, start, _valid(shard, coordinate))
    return whole


def _valid(shard: Shard, coordinate: int) -> int:
    return max(0, min(shard.chunk, shard.extent - coordinate * shard.chunk))
