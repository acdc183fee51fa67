"""Rules of ops that pick or set elements by index tensors: embedding, index, gather, scatter.

Padding of an index tensor is filled with 0, which is an index that exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .builders import P, Rule, dim, linear, row
from .call import Call
from .strategy import Lowering, Row, TensorMeta


def embedding(call: Call) -> list[Row]:
    """embedding: by vocabulary (a partial sum: each rank has the rows it owns), by hidden size, by index."""
    rank = len(call.meta("indices").shape)
    by_vocabulary = row([P], [0, None], fills=(None, None), lowering=Lowering.OFFSET)
    rows = [by_vocabulary, row([rank], [1, None]), linear(call, "weight")]
    return rows + [row([d], [None, d], fills=(None, 0.0)) for d in range(rank)]


def embedding_backward(call: Call) -> list[Row]:
    """embedding_dense_backward: by vocabulary, by hidden size, and by index (a partial sum)."""
    rank = len(call.meta("indices").shape)
    rows = [row([1], [rank, None]), linear(call, "grad_output")]
    if not call.flag("scale_grad_by_freq"):
        rows.append(row([0], [None, None], lowering=Lowering.OFFSET))
        rows += [row([P], [d, d], fills=(0.0, 0.0)) for d in range(rank)]
    return rows


@dataclass(frozen=True)
class _Indexing:
    """How index and index_put read `self`: which dims are indexed, and where these come out."""

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
        """The output dim where the broadcast indices begin: the first indexed dim, or 0 where those are apart."""
        adjacent = self.dims == tuple(range(self.dims[0], self.dims[-1] + 1))
        return self.dims[0] if adjacent else 0

    def kept(self) -> list[tuple[int, int]]:
        """The dims that are not indexed, with the output dim each becomes."""
        free = [d for d in range(self.rank) if d not in self.dims]
        return [(d, place if place < self.start else place + len(self.broadcast)) for place, d in enumerate(free)]

    def index_dims(self, d: int) -> list[int | None]:
        """For each index tensor, which of its dims is dim `d` of the broadcast shape; None: it has none, or repeats."""
        extent = self.broadcast[d]
        places = [d - len(self.broadcast) + len(shape) for shape in self.shapes]
        return [
            place if place >= 0 and shape[place] == extent else None
            for place, shape in zip(places, self.shapes, strict=True)
        ]


def _indexing(call: Call) -> _Indexing | None:
    """None where nothing is indexed, or by a mask (whose output's extent depends on data)."""
    indices = call.operands["indices"]
    given = indices if isinstance(indices, (list, tuple)) else ()
    found = {d: meta for d, meta in enumerate(given) if isinstance(meta, TensorMeta)}
    if not found or any(meta.dtype in (torch.bool, torch.uint8) for meta in found.values()):
        return None
    return _Indexing(len(call.meta("self").shape), tuple(found), tuple(meta.shape for meta in found.values()))


def index(call: Call) -> list[Row]:
    """index: the dims that are not indexed, or the indices themselves."""
    how = _indexing(call)
    if how is None:
        return []
    whole: list[int | None] = [None] * len(how.dims)
    rows = [row([out], [d, *whole]) for d, out in how.kept()]
    for d in range(len(how.broadcast)):
        given = how.index_dims(d)
        fills = tuple(None if place is None else 0.0 for place in given)
        rows.append(row([how.start + d], [None, *given], fills=(None, *fills)))
    return [*rows, linear(call, "self")]


def index_put(call: Call) -> list[Row]:
    """index_put: the dims that are not indexed; linear in the tensor and the values together."""
    how = _indexing(call)
    if how is None:
        return []
    values, rows = call.meta("values").shape, [linear(call, "self", "values")]
    full = len(how.broadcast) + how.rank - len(how.dims)
    for d, out in how.kept():
        place = out - full + len(values)
        there = place if place >= 0 and values[place] == call.meta("self").shape[d] else None
        rows.append(row([d], [d, *[None] * len(how.dims), there]))
    return rows + (_added(how, values) if call.flag("accumulate") else [])


def _added(how: _Indexing, values: tuple[int, ...]) -> list[Row]:
    """Where values are added up: the indices with their values, each rank's addends to a partial sum."""
    rows: list[Row] = []
    full = len(how.broadcast) + how.rank - len(how.dims)
    for d, extent in enumerate(how.broadcast):
        place = how.start + d - full + len(values)
        if place >= 0 and values[place] == extent and None not in (given := how.index_dims(d)):
            rows.append(row([P], [P, *given, place], fills=(None, *[0.0] * len(given), 0.0)))
    return rows


def _aligned(call: Call, *names: str) -> list[int]:
    """The dims other than the one picked along, where all of `names` have the extent of `self`."""
    shape = call.meta("self").shape
    along = dim(call.integer("dim"), len(shape))
    shapes = [call.meta(name).shape for name in names]
    return [d for d in range(len(shape)) if d != along and all(other[d] == shape[d] for other in shapes)]


def gather(call: Call) -> list[Row]:
    """gather: the other dims, or the index along the picked dim."""
    rank = len(call.meta("self").shape)
    if not rank or len(call.meta("index").shape) != rank:
        return []
    along = dim(call.integer("dim"), rank)
    rows = [row([d], [d, d], fills=(None, 0.0)) for d in _aligned(call, "index")]
    return [*rows, row([along], [None, along], fills=(None, 0.0)), linear(call, "self")]


def scatter(call: Call) -> list[Row]:
    """scatter, scatter_add: the other dims; linear in the tensor and the source together."""
    if not call.meta("self").shape:
        return []
    source = ["src"] if call.maybe("src") else []
    fills = (None, 0.0, *[None] * len(source))
    rows = [row([d], [d] * len(fills), fills=fills) for d in _aligned(call, "index", *source)]
    still = source or call.operands.get("value") == 0
    return [*rows, linear(call, "self", *source)] if still else rows


def index_select(call: Call) -> list[Row]:
    """index_select: the other dims, or the index."""
    rank = len(call.meta("self").shape)
    if not rank:
        return []
    along = dim(call.integer("dim"), rank)
    rows = [row([d], [d, None]) for d in range(rank) if d != along]
    return [*rows, row([along], [None, 0], fills=(None, 0.0)), linear(call, "self")]


TABLE: dict[str, Rule] = {
    "aten.embedding.default": embedding,
    "aten.embedding_dense_backward.default": embedding_backward,
    **dict.fromkeys(("aten.index.Tensor", "aten._unsafe_index.Tensor"), index),
    **dict.fromkeys(("aten.index_put.default", "aten._unsafe_index_put.default"), index_put),
    "aten.gather.default": gather,
    **dict.fromkeys(("aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default"), scatter),
    "aten.index_select.default": index_select,
}
