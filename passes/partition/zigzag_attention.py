"""Causal attention on a ring whose tokens are cut zigzag: a step is two half blocks of scores, on every rank.

The tokens have 2n parts; rank r holds part r, which comes early, and part 2n - 1 - r, which comes late. Of the parts of
another rank its queries see two of four pairs: the late queries see the early keys; and the early queries see the early
keys if that rank comes before, else the late queries see the late keys. So a step is two attentions of half the
queries on half the keys, without a mask. Which operands the second one has, `where` chooses: shapes are equal on all
ranks, and a step has half the scores of a contiguous ring's. The own parts are causal as they lie, early before late.

Source: Striped Attention (arXiv:2311.09431) balances so by single tokens; the Llama 3 report (arXiv:2407.21783),
section 3.3.2, by 2n parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.bindings import Value
from ...ir.types import TensorType, from_mlir
from .ring import FLAG, TOKENS, Ring, bare, merged


def with_step(ring: Ring, parts: Sequence[Value], step: int, key: Value, value: Value) -> list[Value]:
    """The parts so far with those of the block of a step."""
    pairs = _Pairs(ring, step)
    early, late = (list(halves) for halves in zip(*map(pairs.halves, parts), strict=True))
    queries, keys, values = map(pairs.halves, (ring.query, key, value))
    types = [bare(queries[0]), _rows(queries[0], parts[1])]
    late = merged(ring.emitter, late, ring.on([queries[1], keys[0], values[0]], types))
    chosen = [pairs.chosen(*halves) for halves in (queries, keys, values)]
    out, logsumexp = ring.on(chosen, types)
    early = merged(ring.emitter, early, [out, pairs.only_early(logsumexp, float("-inf"))])
    late = merged(ring.emitter, late, [out, pairs.only_late(logsumexp, float("-inf"))])
    return [pairs.joined(*halves) for halves in zip(early, late, strict=True)]


def gradients(ring: Ring, step: int, key: Value, value: Value) -> list[Value]:
    """The gradients of queries, keys and values that come from the block of a step."""
    pairs = _Pairs(ring, step)
    grad, query, _, _, out, logsumexp = map(pairs.halves, ring.args[:6])
    keys, values = pairs.halves(key), pairs.halves(value)
    types = [bare(query[0]), bare(keys[0]), bare(values[0])]
    late = ring.on([grad[1], query[1], keys[0], values[0], out[1], logsumexp[1]], types)
    operands = (grad, query, keys, values, out, logsumexp)
    other = ring.on([pairs.chosen(*halves) for halves in operands], types)
    of_early, of_late = ([each(value, 0.0) for value in other] for each in (pairs.only_early, pairs.only_late))
    added = [ring.emitter.like("aten.add.Tensor", a, b) for a, b in zip(late, [of_late[0], *of_early[1:]], strict=True)]
    return [pairs.joined(of_early[0], added[0]), *map(pairs.joined, added[1:], of_late[1:])]


class _Pairs:
    """Early and late halves, and the choice between them for the block of a step."""

    def __init__(self, ring: Ring, step: int) -> None:
        self.emitter = ring.emitter
        self.is_before = ring.emitter.op("aten.lt.Tensor", ring.block(step), ring.coordinate, type=FLAG)
        """Whether the block is of a rank before this one."""

    def halves(self, value: Value) -> tuple[Value, Value]:
        """The early and the late half of the tokens."""
        type_ = from_mlir(value.type)
        half = type_.shape[TOKENS] // 2
        part = TensorType(type_.dtype, (*type_.shape[:TOKENS], half, *type_.shape[TOKENS + 1 :]))
        early, late = (
            self.emitter.op("aten.slice.Tensor", value, TOKENS, start, start + half, type=part) for start in (0, half)
        )
        return early, late

    def joined(self, early: Value, late: Value) -> Value:
        """Both halves."""
        type_ = from_mlir(early.type)
        whole = TensorType(type_.dtype, (*type_.shape[:TOKENS], 2 * type_.shape[TOKENS], *type_.shape[TOKENS + 1 :]))
        return self.emitter.op("aten.cat.default", [early, late], TOKENS, type=whole)

    def chosen(self, early: Value, late: Value) -> Value:
        """The half of the second pair."""
        return self.emitter.op("aten.where.self", self.is_before, early, late, type=bare(early))

    def only_early(self, value: Value, otherwise: float) -> Value:
        """What the second pair gives to early tokens."""
        return self.emitter.op("aten.where.ScalarOther", self.is_before, value, otherwise, type=bare(value))

    def only_late(self, value: Value, otherwise: float) -> Value:
        """What the second pair gives to late tokens."""
        return self.emitter.op("aten.where.ScalarSelf", self.is_before, otherwise, value, type=bare(value))


def _rows(queries: Value, like: Value) -> TensorType:
    """The type of one number a query."""
    return TensorType(from_mlir(like.type).dtype, from_mlir(queries.type).shape[:3])
