"""Dims that are cut inside each of their blocks, on one rank: local sizes of ops, and reshards.

A rank's part has its chunks of the blocks one after the other. So an op that takes blocks apart takes the same ones,
at their local ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

from ...ir.bindings import Value
from ...ir.collectives import ALL_GATHER
from ...ir.operations import set_use
from ...ir.placement import Placement, Shard
from ...ir.types import TensorType, from_mlir
from ..sharding.rules.blocks import ends_of, slice_bounds
from ..sharding.rules.builders import dim
from ..sharding.rules.call import bind
from ..sharding.rules.strategy import Strategy, TensorMeta
from .emitter import LocalEmitter
from .localize import LocalCall, Shape, with_local_sizes

_SPLITS = {"aten.split.Tensor": "split_size", "aten.split_with_sizes.default": "split_sizes"}
_BACKWARD = ("aten.slice_backward.default",)
_SLICES = ("aten.slice.Tensor", *_BACKWARD)


def has_blocks(strategy: Strategy) -> bool:
    """Whether the strategy cuts a dim inside blocks."""
    return any(isinstance(p, Shard) and bool(p.blocks) for p in (*strategy.inputs, *strategy.outputs))


def with_local_blocks(
    op: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    outputs: tuple[TensorMeta | None, ...],
    local_outputs: Sequence[Shape | None],
) -> LocalCall:
    """`with_local_sizes` of an op under a strategy on blocks: splits and slices have their local ends."""
    call = bind(op, args, kwargs, outputs)
    if call is None or op not in (*_SPLITS, *_SLICES):
        return with_local_sizes(op, args, kwargs, outputs, local_outputs)
    rank = len(next(shape for shape in local_outputs if shape is not None))
    along = dim(call.integer("dim"), rank)
    values = dict(call.operands)
    if op in _SPLITS:
        sizes = [shape[along] for shape in local_outputs if shape is not None]
        values[_SPLITS[op]] = sizes[0] if op == "aten.split.Tensor" else sizes
        return op, tuple(values.values()), {}
    shape, meta = local_outputs[0], outputs[0]
    assert shape is not None and meta is not None, "a slice has a result"
    parts = meta.shape[along] // shape[along]
    operand: Any = args[0]
    extent = meta.shape[along] if op in _BACKWARD else from_mlir(operand.type).shape[along] * parts
    bounds = slice_bounds(call, extent)
    assert bounds is not None, "a slice with a step has no strategy on blocks"
    values["start"], values["end"] = (end // parts for end in bounds)
    if op in _BACKWARD:
        values["input_sizes"] = list(shape)
    return op, tuple(values.values()), {}


def from_blocks(
    emitter: LocalEmitter, value: Value, shape: tuple[int, ...], placement: Placement, d: int, use: int | None
) -> tuple[Value, Placement]:
    """The value with dim `d`, which is cut inside blocks, whole: gathered, and the blocks' chunks put in order."""
    axes, blocks = placement.dims[d], placement.blocks_of(d)
    own = from_mlir(value.type)
    ranks = emitter.size(axes)
    gathered_shape = _with(own.shape, d, own.shape[d] * ranks)
    gathered = emitter.op(ALL_GATHER, value, list(axes), d, type=TensorType(own.dtype, gathered_shape))
    set_use(gathered.owner, use)
    parts = []
    for (start, end), extent in zip(pairwise(ends_of(blocks)), blocks, strict=True):
        for rank in range(ranks) if extent > 0 else reversed(range(ranks)):
            first, chunk = rank * own.shape[d] + start // ranks, (end - start) // ranks
            type_ = TensorType(own.dtype, _with(own.shape, d, chunk))
            parts.append(emitter.op("aten.slice.Tensor", gathered, d, first, first + chunk, type=type_))
    after = placement.without(axes)
    return emitter.op("aten.cat.default", parts, d, type=emitter.placed(value, shape, after)), after


def to_blocks(
    emitter: LocalEmitter, value: Value, shape: tuple[int, ...], placement: Placement, d: int, target: Placement
) -> tuple[Value, Placement]:
    """The value, whose dim `d` is whole, with this rank's chunk of each block of that dim."""
    axes, blocks = target.dims[d], target.blocks_of(d)
    own, ranks = from_mlir(value.type), emitter.size(axes)
    dims = tuple(axes if index == d else present for index, present in enumerate(placement.dims))
    after = replace(placement, dims=dims).with_blocks(d, blocks)
    parts = []
    for (start, end), extent in zip(pairwise(ends_of(blocks)), blocks, strict=True):
        block_type = TensorType(own.dtype, _with(own.shape, d, end - start))
        chunk = (end - start) // ranks
        chunk_type = TensorType(own.dtype, _with(own.shape, d, chunk))
        if extent > 0:
            block = emitter.op("aten.slice.Tensor", value, d, start, end, type=block_type)
        else:
            firsts = reversed(range(start, end, chunk))
            chunks = [emitter.op("aten.slice.Tensor", value, d, n, n + chunk, type=chunk_type) for n in firsts]
            block = emitter.op("aten.cat.default", chunks, d, type=block_type)
        parts.append(emitter.op("comm.shard", block, list(axes), d, chunk, type=chunk_type))
    return emitter.op("aten.cat.default", parts, d, type=emitter.placed(value, shape, after)), after


def by_block(emitter: LocalEmitter, value: Value, blocks: tuple[int, ...], d: int, inner: tuple[str, ...]) -> Value:
    """Chunks of all ranks of a group, one rank after the other, in the order of their blocks."""
    chunks = _chunks(blocks, from_mlir(value.type).shape[d], emitter.size(inner))
    order = sorted(range(len(chunks)), key=lambda i: (chunks[i].block, chunks[i].place))
    starts = list(accumulate((chunk.extent for chunk in chunks), initial=0))
    return _pieces(emitter, value, d, [(starts[i], chunks[i].extent) for i in order])


def by_rank(emitter: LocalEmitter, value: Value, blocks: tuple[int, ...], d: int, inner: tuple[str, ...]) -> Value:
    """Blocks, one after the other, as the chunks of each rank of a group: what `by_block` takes."""
    chunks = _chunks(blocks, from_mlir(value.type).shape[d], emitter.size(inner))
    order = sorted(range(len(chunks)), key=lambda i: (chunks[i].block, chunks[i].place))
    starts, start = [0] * len(chunks), 0
    for i in order:
        starts[i], start = start, start + chunks[i].extent
    return _pieces(emitter, value, d, [(starts[i], chunk.extent) for i, chunk in enumerate(chunks)])


@dataclass(frozen=True)
class _Chunk:
    """A rank's part of a block: the block, the part's place in it, and its extent."""

    block: int
    place: int
    extent: int


def _chunks(blocks: tuple[int, ...], extent: int, ranks: int) -> list[_Chunk]:
    """The chunks of blocks that have `extent` elements together, rank by rank; of a reversed block from its end."""
    parts = sum(map(abs, blocks)) // extent * ranks
    return [
        _Chunk(number, rank if block > 0 else ranks - 1 - rank, abs(block) // parts)
        for rank in range(ranks)
        for number, block in enumerate(blocks)
    ]


def _pieces(emitter: LocalEmitter, value: Value, d: int, pieces: Sequence[tuple[int, int]]) -> Value:
    """The value with pieces of a dim, each (start, extent), in another order."""
    type_ = from_mlir(value.type)
    parts = [
        emitter.op(
            "aten.slice.Tensor", value, d, start, start + extent,
            type=TensorType(type_.dtype, _with(type_.shape, d, extent)),
        )
        for start, extent in pieces
    ]  # fmt: skip
    return emitter.op("aten.cat.default", parts, d, type=type_)


def _with(shape: tuple[int, ...], d: int, extent: int) -> tuple[int, ...]:
    return (*shape[:d], extent, *shape[d + 1 :])
