"""Causal attention on a ring whose tokens are cut zigzag: a step is two half blocks of scores, on every rank.

The tokens have 2n parts; rank r holds part r, which comes early, and part 2n - 1 - r, which comes late. Of the parts of
another rank its queries see two of four pairs: the late queries see the early keys; and the early queries see the early
keys if that rank comes before, else the late queries see the late keys. So a step is two attentions of half the
queries on half the keys, with no mask but what the model hides besides. Which operands the second one has, `where`
chooses: shapes are equal on all ranks, and a step has half the scores of a contiguous ring's. The own parts are causal
as they lie, early before late.

Source: Striped Attention (arXiv:2311.09431) balances so by single tokens; the Llama 3 report (arXiv:2407.21783),
section 3.3.2, by 2n parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.bindings import Value
from ...ir.types import TensorType, from_mlir
from .ring import FLAG, TOKENS, Ring, bare, columns_at, first_part, merged, of_parts


def with_step(ring: Ring, parts: Sequence[Value], step: int, key: Value, value: Value) -> list[Value]:
    """The parts so far with those of the block of a step."""
    pairs = _Pairs(ring, ring.coordinate, ring.block(step))
    of_late, of_early = _outputs(pairs, [ring.query, key, value], pairs.tiles(), bare(parts[1]))
    early, late = (list(halves) for halves in zip(*map(pairs.halves, parts), strict=True))
    late = merged(ring.emitter, late, of_late)
    out, logsumexp = of_early
    early = merged(ring.emitter, early, [out, pairs.only_early(logsumexp, float("-inf"))])
    late = merged(ring.emitter, late, [out, pairs.only_late(logsumexp, float("-inf"))])
    return [pairs.joined(*halves) for halves in zip(early, late, strict=True)]


def gradients(ring: Ring, step: int, key: Value, value: Value) -> list[Value]:
    """The gradients of queries, keys and values that come from the block of a step."""
    pairs = _Pairs(ring, ring.coordinate, ring.block(step))
    grad, query, _, _, out, logsumexp = ring.args[:6]
    return _gradients(pairs, [grad, query, key, value, out, logsumexp], pairs.tiles())


def of_blocks(
    ring: Ring, args: Sequence[Value | None], queries: Value, keys: Value, mask: Value | None,
    types: Sequence[TensorType],
) -> list[Value]:  # fmt: skip
    """The op on the queries of one block and the keys of another, by their numbers; `mask` is that of both."""
    pairs = _Pairs(ring, queries, keys)
    tiles = pairs.tiles_of(mask)
    operands = [value for value in args[: 3 + 3 * ring.query_at] if value is not None]
    if ring.query_at:
        return _gradients(pairs, operands, tiles)
    out_type, rows = types
    (out_late, log_late), (out, logsumexp) = _outputs(pairs, operands, tiles, rows)
    early = first_part(ring.emitter, out, pairs.only_early(logsumexp, float("-inf")))
    late = first_part(ring.emitter, out_late, log_late)
    late = merged(ring.emitter, late, [out, pairs.only_late(logsumexp, float("-inf"))])
    both = [pairs.joined(*halves) for halves in zip(early, late, strict=True)]
    return of_parts(ring.emitter, both, out_type, rows)


_Masks = tuple[Value | None, Value | None]
"""The masks of late queries on early keys, and of the second pair."""


def _outputs(pairs: _Pairs, operands: Sequence[Value], masks: _Masks, rows: TensorType) -> list[list[Value]]:
    """Output and logsumexp of the late queries on the early keys, and of the second pair."""
    queries, keys, values = map(pairs.halves, operands)
    half = TensorType(rows.dtype, from_mlir(queries[0].type).shape[:3])
    types = [bare(queries[0]), half]
    first = pairs.ring.on([queries[1], keys[0], values[0]], types, masks[0])
    second = pairs.ring.on([pairs.chosen(*halves) for halves in (queries, keys, values)], types, masks[1])
    return [first, second]


def _gradients(pairs: _Pairs, args: Sequence[Value], masks: _Masks) -> list[Value]:
    """The gradients of queries, keys and values, whole, of both pairs."""
    operands = [pairs.halves(value) for value in args]
    grad, query, keys, values, out, logsumexp = operands
    types = [bare(query[0]), bare(keys[0]), bare(values[0])]
    late = pairs.ring.on([grad[1], query[1], keys[0], values[0], out[1], logsumexp[1]], types, masks[0])
    other = pairs.ring.on([pairs.chosen(*halves) for halves in operands], types, masks[1])
    of_early, of_late = ([each(value, 0.0) for value in other] for each in (pairs.only_early, pairs.only_late))
    more = [of_late[0], *of_early[1:]]
    added = [pairs.emitter.like("aten.add.Tensor", a, b) for a, b in zip(late, more, strict=True)]
    return [pairs.joined(of_early[0], added[0]), *map(pairs.joined, added[1:], of_late[1:])]


class _Pairs:
    """Early and late halves, and the choice between them for the block of a step."""

    def __init__(self, ring: Ring, queries: Value, keys: Value) -> None:
        self.emitter, self.ring, self.block = ring.emitter, ring, keys
        self.is_before = ring.emitter.op("aten.lt.Tensor", keys, queries, type=FLAG)
        """Whether the block of keys is of a rank before that of the queries."""

    def tiles(self) -> _Masks:
        """The masks of both pairs, of the own mask: its rows are the queries', its columns all keys."""
        mask, e = self.ring.mask, self.emitter
        if mask is None:
            return None, None
        early, late = self._rows(mask)
        positions = self.ring.halves_of_positions(self.block, self.ring.keys)
        return columns_at(e, late, positions[0]), columns_at(e, self.chosen(early, late), self.chosen(*positions))

    def tiles_of(self, mask: Value | None) -> _Masks:
        """The masks of both pairs, of a mask of these queries and keys."""
        if mask is None:
            return None, None
        (early, _), (of_late, late) = map(self._columns, self._rows(mask))
        return of_late, self.chosen(early, late)

    def _rows(self, mask: Value) -> tuple[Value, Value]:
        """The rows of early and of late queries; a mask of one row is the same for all."""
        dim = len(from_mlir(mask.type).shape) - 2
        is_by_query = dim >= 0 and from_mlir(mask.type).shape[dim] > 1
        return self.halves(mask, dim) if is_by_query else (mask, mask)

    def _columns(self, mask: Value) -> tuple[Value, Value]:
        """The columns of early and of late keys."""
        dim = len(from_mlir(mask.type).shape) - 1
        return self.halves(mask, dim) if from_mlir(mask.type).shape[dim] > 1 else (mask, mask)

    def halves(self, value: Value, dim: int = TOKENS) -> tuple[Value, Value]:
        """The early and the late half of the tokens."""
        type_ = from_mlir(value.type)
        half = type_.shape[dim] // 2
        part = TensorType(type_.dtype, (*type_.shape[:dim], half, *type_.shape[dim + 1 :]))
        early, late = (
            self.emitter.op("aten.slice.Tensor", value, dim, start, start + half, type=part) for start in (0, half)
        )
        return early, late

    def joined(self, early: Value, late: Value) -> Value:
        """Both halves."""
        type_ = from_mlir(early.type)
        whole = TensorType(type_.dtype, (*type_.shape[:TOKENS], 2 * type_.shape[TOKENS], *type_.shape[TOKENS + 1 :]))
        return self.emitter.op("aten.cat.default", [early, late], TOKENS, type=whole)

    def chosen(self, early: Value, late: Value) -> Value:
        """The half of the second pair."""
        if early == late:
            return early
        return self.emitter.op("aten.where.self", self.is_before, early, late, type=bare(early))

    def only_early(self, value: Value, otherwise: float) -> Value:
        """What the second pair gives to early tokens."""
        return self.emitter.op("aten.where.ScalarOther", self.is_before, value, otherwise, type=bare(value))

    def only_late(self, value: Value, otherwise: float) -> Value:
        """What the second pair gives to late tokens."""
        return self.emitter.op("aten.where.ScalarSelf", self.is_before, otherwise, value, type=bare(value))
