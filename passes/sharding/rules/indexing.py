"""Rules of ops that pick or set elements by index tensors: embedding, index, gather, scatter.

The padding of an index tensor is filled with 0, which is a valid index.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .builders import P, Rule, dim, linear, strategy
from .call import Call
from .strategy import Lowering, Strategy, TensorMeta


def embedding(call: Call) -> list[Strategy]:
    """embedding: by vocabulary (a partial sum: each rank has the rows it owns), by hidden size, by index."""
    rank = len(call.meta("indices").shape)
    by_vocabulary = strategy([P], [0, None], fills=(None, None), lowering=Lowering.OFFSET)
    strategies = [by_vocabulary, strategy([rank], [1, None]), linear(call, "weight")]
    return strategies + [strategy([d], [None, d], fills=(None, 0.0)) for d in range(rank)]


def embedding_backward(call: Call) -> list[Strategy]:
    """embedding_dense_backward: by vocabulary, by hidden size, and by index (a partial sum)."""
    rank = len(call.meta("indices").shape)
    strategies = [strategy([1], [rank, None]), linear(call, "grad_output")]
    if not call.flag("scale_grad_by_freq"):
        strategies.append(strategy([0], [None, None], lowering=Lowering.OFFSET))
        strategies += [strategy([P], [d, d], fills=(0.0, 0.0)) for d in range(rank)]
    return strategies


@dataclass(frozen=True)
class _Indexing:
    """How index and index_put read `self`: the indexed dims, and their positions in the output."""

    rank: int
    dims: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    """The shapes of the index tensors, which broadcast against each other."""

    @property
    def broadcast(self) -> tuple[int, ...]:
        """The shape of the indices broadcast against each other."""
        rank = max(len(shape) for shape in self.shapes)
        wide = [(1,) * (rank - len(shape)) + shape for shape in self.shapes]
        return tuple(next((n for n in extents if n != 1), 1) for extents in zip(*wide, strict=True))

    @property
    def start(self) -> int:
        """The output dim where the broadcast indices begin: the first indexed dim, or 0 if those are not adjacent."""
        adjacent = self.dims == tuple(range(self.dims[0], self.dims[-1] + 1))
        return self.dims[0] if adjacent else 0

    def kept(self) -> list[tuple[int, int]]:
        """(dim, output dim) of the dims that are not indexed."""
        free = [d for d in range(self.rank) if d not in self.dims]
        return [
            (d, position if position < self.start else position + len(self.broadcast))
            for position, d in enumerate(free)
        ]

    def index_dims(self, d: int) -> list[int | None]:
        """For each index tensor, its dim that is dim `d` of the broadcast shape; None: it lacks or broadcasts it."""
        extent = self.broadcast[d]
        positions = [d - len(self.broadcast) + len(shape) for shape in self.shapes]
        return [
            position if position >= 0 and shape[position] == extent else None
            for position, shape in zip(positions, self.shapes, strict=True)
        ]


def _indexing(call: Call) -> _Indexing | None:
    """None without index tensors, or for a mask (whose output's extent depends on data)."""
    indices = call.operands["indices"]
    entries = indices if isinstance(indices, (list, tuple)) else ()
    index_tensors = {d: meta for d, meta in enumerate(entries) if isinstance(meta, TensorMeta)}
    if not index_tensors or any(meta.dtype in (torch.bool, torch.uint8) for meta in index_tensors.values()):
        return None
    return _Indexing(
        len(call.meta("self").shape), tuple(index_tensors), tuple(meta.shape for meta in index_tensors.values())
    )


def index(call: Call) -> list[Strategy]:
    """index: the dims that are not indexed, or the indices themselves."""
    indexing = _indexing(call)
    if indexing is None:
        return []
    replicated_indices: list[int | None] = [None] * len(indexing.dims)
    strategies = [strategy([out], [d, *replicated_indices]) for d, out in indexing.kept()]
    for d in range(len(indexing.broadcast)):
        inputs = indexing.index_dims(d)
        fills = tuple(None if input_dim is None else 0.0 for input_dim in inputs)
        strategies.append(strategy([indexing.start + d], [None, *inputs], fills=(None, *fills)))
    return [*strategies, linear(call, "self")]


def index_put(call: Call) -> list[Strategy]:
    """index_put: the dims that are not indexed; linear in the tensor and the values together."""
    indexing = _indexing(call)
    if indexing is None:
        return []
    values, strategies = call.meta("values").shape, [linear(call, "self", "values")]
    full = len(indexing.broadcast) + indexing.rank - len(indexing.dims)
    for d, out in indexing.kept():
        position = out - full + len(values)
        value_dim = position if position >= 0 and values[position] == call.meta("self").shape[d] else None
        strategies.append(strategy([d], [d, *[None] * len(indexing.dims), value_dim]))
    return strategies + (_accumulated(indexing, values) if call.flag("accumulate") else [])


def _accumulated(indexing: _Indexing, values: tuple[int, ...]) -> list[Strategy]:
    """With accumulate: indices and values sharded alike; each rank's result is a partial sum."""
    strategies: list[Strategy] = []
    full = len(indexing.broadcast) + indexing.rank - len(indexing.dims)
    for d, extent in enumerate(indexing.broadcast):
        position = indexing.start + d - full + len(values)
        if position >= 0 and values[position] == extent and None not in (inputs := indexing.index_dims(d)):
            strategies.append(strategy([P], [P, *inputs, position], fills=(None, *[0.0] * len(inputs), 0.0)))
    return strategies


def _aligned(call: Call, *names: str) -> list[int]:
    """The dims other than the indexed one in which all of `names` have the extent of `self`."""
    shape = call.meta("self").shape
    along = dim(call.integer("dim"), len(shape))
    shapes = [call.meta(name).shape for name in names]
    return [d for d in range(len(shape)) if d != along and all(other[d] == shape[d] for other in shapes)]


def gather(call: Call) -> list[Strategy]:
    """gather: the other dims, the index along the indexed dim, or that dim itself (a partial sum)."""
    rank = len(call.meta("self").shape)
    if not rank or len(call.meta("index").shape) != rank:
        return []
    along = dim(call.integer("dim"), rank)
    strategies = [strategy([d], [d, d], fills=(None, 0.0)) for d in _aligned(call, "index")]
    strategies.append(strategy([along], [None, along], fills=(None, 0.0)))
    if call.meta("self").dtype.is_floating_point:
        strategies.append(strategy([P], [along, None], fills=(None, None), lowering=Lowering.OFFSET))
    return [*strategies, linear(call, "self")]


def scatter(call: Call) -> list[Strategy]:
    """scatter, scatter_add: the other dims; linear in the tensor and the source together.

    What is added may be cut along the dim itself: a partial sum. So may be what it is added to.
    """
    if not call.meta("self").shape:
        return []
    source = ["src"] if call.maybe("src") else []
    fills = (None, 0.0, *[None] * len(source))
    strategies = [strategy([d], [d] * len(fills), fills=fills) for d in _aligned(call, "index", *source)]
    if call.op == "aten.scatter_add.default" and call.meta("index").shape == call.meta("src").shape:
        along = dim(call.integer("dim"), len(call.meta("self").shape))
        strategies.append(strategy([P], [P, along, along], fills=(None, 0.0, 0.0)))
        strategies.append(strategy([along], [along, None, None], lowering=Lowering.OFFSET))
    is_linear = source or call.operands.get("value") == 0
    return [*strategies, linear(call, "self", *source)] if is_linear else strategies


def index_select(call: Call) -> list[Strategy]:
    """index_select: the other dims, or the index."""
    rank = len(call.meta("self").shape)
    if not rank:
        return []
    along = dim(call.integer("dim"), rank)
    strategies = [strategy([d], [d, None]) for d in range(rank) if d != along]
    return [*strategies, strategy([along], [None, 0], fills=(None, 0.0)), linear(call, "self")]


def index_add(call: Call) -> list[Strategy]:
    """index_add, index_copy: every dim but the indexed one; linear in the tensor and the source together.

    What is added may be cut along the indexed dim too: a partial sum.
    """
    rank = len(call.meta("self").shape)
    along = dim(call.integer("dim"), rank) if rank else 0
    strategies = [strategy([d], [d, None, d]) for d in range(rank) if d != along]
    if rank and call.op == "aten.index_add.default":
        strategies.append(strategy([P], [P, 0, along], fills=(None, 0.0, 0.0)))
    return [*strategies, linear(call, "self", "source")]


def scatter_reduce(call: Call) -> list[Strategy]:
    """scatter_reduce: every dim but the scattered one, where the operands have the same extents."""
    shape = call.meta("self").shape
    along = dim(call.integer("dim"), len(shape)) if shape else 0
    shapes = [call.meta(name).shape for name in ("self", "index", "src")]
    shared_dims = [d for d in range(len(shape)) if d != along and len({other[d] for other in shapes}) == 1]
    return [strategy([d], [d, d, d], fills=(None, 0.0, None)) for d in shared_dims]


TABLE: dict[str, Rule] = {
    **dict.fromkeys(("aten.index_add.default", "aten.index_copy.default"), index_add),
    "aten.scatter_reduce.two": scatter_reduce,
    "aten.embedding.default": embedding,
    "aten.embedding_dense_backward.default": embedding_backward,
    **dict.fromkeys(("aten.index.Tensor", "aten._unsafe_index.Tensor"), index),
    **dict.fromkeys(("aten.index_put.default", "aten._unsafe_index_put.default"), index_put),
    "aten.gather.default": gather,
    **dict.fromkeys(("aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default"), scatter),
    "aten.index_select.default": index_select,
}
