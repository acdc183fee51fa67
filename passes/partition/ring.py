"""A ring of ranks around which keys and values go: hops, the op on one block of keys, and the merge of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...ir.bindings import Value
from ...ir.collectives import PERMUTE
from ...ir.operations import Call, build, set_use
from ...ir.types import TensorType, from_mlir, to_mlir
from .emitter import LocalEmitter, Shards
from .vocabulary import cast

TOKENS = 2
"""The dim of tokens in queries, keys and values."""

INDEX = TensorType(torch.int64, ())
FLAG = TensorType(torch.bool, ())

Band = tuple[float, float]
"""(lowest, highest) difference of the indices of a query and of a key that it may see."""

_ARGUMENTS = {"nn.attention": (0, 8), "nn.attention_backward": (1, 11)}
"""Where each op has its queries, before keys and values, and how many arguments; the last five are alike."""


class Ring:
    """A rank's attention, and the blocks of keys that pass it: at step s that of the rank s places before it."""

    def __init__(self, emitter: LocalEmitter, shards: Shards, call: Call, band: Band) -> None:
        self.emitter, self.axes, self.size = emitter, shards.axes, emitter.size(shards.axes)
        self.is_zigzag = bool(shards.blocks)
        self.query_at, count = _ARGUMENTS[call.name]
        self.name, self.args = call.name, [*call.args, *[None] * (count - len(call.args))]
        self.query, self.key, self.value = self.args[self.query_at : self.query_at + 3]
        *_, self.mask, self.causal, _, q_offset, self.given_offset = self.args
        self.queries, self.keys = (from_mlir(each.type).shape[TOKENS] for each in (self.query, self.key))
        self.is_square = self.causal and self.queries == self.keys and q_offset is None and self.given_offset is None
        """Whether the own block is on the diagonal."""
        self.coordinate = emitter.op("comm.offset", list(shards.axes), 1, type=INDEX)
        self.q_offset = self._moved(self._times(self.coordinate, self.queries), q_offset)
        self.q_given = q_offset
        lowest, self.highest = band
        self.lowest = max(lowest, 0.0) if self.is_square else lowest

    @property
    def is_balanced(self) -> bool:
        """Whether each step sees two halves of the scores, and which ones the order of two ranks says."""
        return self.is_zigzag and self.queries == self.keys and self.lowest >= 0 and (self.is_square or not self.causal)

    def steps(self) -> list[tuple[int, int]]:
        """The steps after the first whose block a query of any rank may see, and how many hops lead to each.

        At step s the block is s places before the queries, or n - s after them where that is before the first. So a
        window ends the ring early.
        """
        steps, last = [], 0
        for step in range(1, self.size):
            if self.is_zigzag or self.queries != self.keys or self._shows(step) or self._shows(step - self.size):
                steps.append((step, step - last))
                last = step
        return steps

    def _shows(self, blocks: int) -> bool:
        """Whether the mask may show a block of contiguous keys to queries that come so many blocks after it."""
        nearest, farthest = blocks * self.keys - self.keys + 1, blocks * self.keys + self.keys - 1
        return nearest <= self.highest and farthest >= self.lowest

    def passed(self, value: Value, use: int | None = None, hops: int = 1) -> Value:
        """What the rank so many places before this one has."""
        made = self.emitter.op(PERMUTE, value, list(self.axes), hops, type=bare(value))
        set_use(made.owner, use)
        return made

    def block(self, step: int) -> Value:
        """The number of the block `step` places before the own one; after it, where that is below 0."""
        if not step:
            return self.coordinate
        behind = self.emitter.like("aten.add.Scalar", self.coordinate, -step % self.size)
        return self.emitter.like("aten.remainder.Scalar", behind, self.size)

    def attend(self, step: int, key: Value, value: Value, types: Sequence[TensorType]) -> list[Value]:
        """The op on the block of a step; its results have the shapes of `types`.

        Where attention is causal on equal extents, the own block is causal as it lies, and another one of contiguous
        tokens is seen whole or not at all. Else positions say which of its keys a query sees.
        """
        args, block = list(self.args), self.block(step)
        args[self.query_at + 1 : self.query_at + 3] = key, value
        mask = self.mask
        if mask is not None and from_mlir(mask.type).shape[-1] > 1:
            mask = columns_at(self.emitter, mask, self.positions(block, self.keys))
        return self.of_blocks(args, self.coordinate, block, mask, types)

    def of_blocks(
        self, args: Sequence[object], queries: Value, keys: Value, mask: Value | None, types: Sequence[TensorType]
    ) -> list[Value]:
        """The op on the queries of one block and the keys of another, by their numbers; `mask` is that of both.

        The own block is that of which both are the same value.
        """
        args, is_own = [*args], queries == keys
        args[-5] = mask
        if mask is not None or (self.causal and not (is_own and self.is_square)):
            own = self.q_offset if queries == self.coordinate else None
            q_offset = own or self._moved(self._times(queries, self.queries), self.q_given)
            args[-2:] = q_offset, self._moved(self._times(keys, self.keys), self.given_offset)
            if self.causal and self.is_zigzag:
                args[-5], args[-4] = self._hidden_by_position(queries, keys, mask), False
            elif self.is_square and not is_own:
                args[-5], args[-4] = self._whole_or_hidden(queries, keys, mask), False
        return self.built(args, types)

    def on(self, operands: Sequence[Value], types: Sequence[TensorType], mask: Value | None) -> list[Value]:
        """The op on other tensors, in the place of its own, not causal but for its mask.

        Offsets beside a mask say that a query may see no key.
        """
        offsets = [None, None] if mask is None else [self.coordinate, self.coordinate]
        return self.built([*operands, mask, False, self.args[-3], *offsets], types)

    def built(self, args: Sequence[object], types: Sequence[TensorType]) -> list[Value]:
        """The op with these arguments."""
        plain = [to_mlir(TensorType(type_.dtype, type_.shape)) for type_ in types]
        return [*build(Call(self.name, tuple(args)), plain, self.emitter.loc)]

    def _times(self, block: Value, extent: int) -> Value:
        return self.emitter.like("aten.mul.Scalar", block, extent)

    def _moved(self, positions: Value, given: Value | None) -> Value:
        """Positions, counted from a given offset."""
        return positions if given is None else self.emitter.like("aten.add.Tensor", positions, given)

    def positions(self, block: Value, extent: int) -> Value:
        """The positions of a block's tokens, in the order in which they lie."""
        e, row = self.emitter, TensorType(torch.int64, (extent,))
        if self.is_zigzag:
            return e.op("aten.cat.default", self.halves_of_positions(block, extent), type=row)
        own = e.op("aten.arange.default", extent, type=row, dtype=torch.int64)
        return e.op("aten.add.Tensor", own, self._times(block, extent), type=row)

    def halves_of_positions(self, block: Value, extent: int) -> list[Value]:
        """The positions of a zigzag block's early tokens, and of its late ones."""
        e, part = self.emitter, TensorType(torch.int64, (extent // 2,))
        own = e.op("aten.arange.default", extent // 2, type=part, dtype=torch.int64)
        mirrored = e.like("aten.add.Scalar", e.like("aten.neg.default", block), 2 * self.size - 1)
        starts = [self._times(each, extent // 2) for each in (block, mirrored)]
        return [e.op("aten.add.Tensor", own, start, type=part) for start in starts]

    def _whole_or_hidden(self, queries: Value, keys: Value, mask: Value | None) -> Value:
        """The mask, -inf for keys of a block that comes after the queries."""
        hidden = self.emitter.op("aten.gt.Tensor", keys, queries, type=FLAG)
        return self._hiding(hidden, mask)

    def _hidden_by_position(self, of_queries: Value, of_keys: Value, mask: Value | None) -> Value:
        """The mask, -inf for each key that comes after the query."""
        e = self.emitter
        queries = self._moved(self.positions(of_queries, self.queries), self.q_given)
        keys = self._moved(self.positions(of_keys, self.keys), self.given_offset)
        column = e.op("aten.unsqueeze.default", queries, -1, type=TensorType(torch.int64, (self.queries, 1)))
        hidden = e.op("aten.gt.Tensor", keys, column, type=TensorType(torch.bool, (self.queries, self.keys)))
        return self._hiding(hidden, mask)

    def _hiding(self, hidden: Value, mask: Value | None) -> Value:
        dtype = from_mlir(self.key.type).dtype
        if mask is None:
            mask = self.emitter.op("aten.full.default", [1, 1], 0.0, type=TensorType(dtype, (1, 1)), dtype=dtype)
        given, matrix = from_mlir(mask.type), from_mlir(hidden.type).shape
        type_ = TensorType(given.dtype, (*given.shape[:-2], *matrix) if matrix else given.shape)
        return self.emitter.op("aten.where.ScalarSelf", hidden, float("-inf"), mask, type=type_)


def columns_at(emitter: LocalEmitter, mask: Value, positions: Value) -> Value:
    """The columns of a mask for the keys at some positions; a mask of one column is the same for all."""
    given, [count] = from_mlir(mask.type), from_mlir(positions.type).shape
    if given.shape[-1] == 1:
        return mask
    type_ = TensorType(given.dtype, (*given.shape[:-1], count))
    return emitter.op("aten.index_select.default", mask, len(given.shape) - 1, positions, type=type_)


def first_part(emitter: LocalEmitter, out: Value, logsumexp: Value) -> list[Value]:
    """A part as `nn.merge_attention` takes it: total, weight (1 for a row that sees a key, else 0) and logsumexp."""
    rows = from_mlir(logsumexp.type)
    sees = emitter.op("aten.ne.Scalar", logsumexp, float("-inf"), type=replace(rows, dtype=torch.bool))
    return [cast(emitter, out, rows.dtype), cast(emitter, sees, rows.dtype), logsumexp]


def merged(emitter: LocalEmitter, parts: Sequence[Value], part: Sequence[Value]) -> list[Value]:
    """The parts so far with one more."""
    call = Call("nn.merge_attention", (*parts, *part))
    return [*build(call, [each.type for each in parts], emitter.loc)]


def of_parts(emitter: LocalEmitter, parts: Sequence[Value], out: TensorType, logsumexp: TensorType) -> list[Value]:
    """The results of attention over all parts."""
    total, weight, highest = parts
    # A row that sees a key weighs 1 at least, that of its highest part; a row that sees none has 0 / 1 and -inf.
    least = emitter.like("aten.clamp_min.default", weight, 1.0)
    column = TensorType(logsumexp.dtype, (*logsumexp.shape, 1))
    divisor = emitter.op("aten.unsqueeze.default", least, -1, type=column)
    mean = emitter.op("aten.div.Tensor", total, divisor, type=replace(out, dtype=logsumexp.dtype))
    logs = emitter.like("aten.log.default", weight)
    return [cast(emitter, mean, out.dtype), emitter.op("aten.add.Tensor", highest, logs, type=logsumexp)]


def bare(value: Value) -> TensorType:
    """The type of a value that stands for a part of no global tensor."""
    type_ = from_mlir(value.type)
    return TensorType(type_.dtype, type_.shape)
