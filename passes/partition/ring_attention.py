"""Attention on a ring: keys and values go from rank to rank, and a rank's queries meet one block of them at a time.

Before (global shapes)                          After (local shapes, cp=2)
  %o, %l = nn.attention %q, %k, %v                %o0, %l0 = nn.attention %q, %k, %v               the rank's own block
    all of q, k, v: {cp = "shard(2)"}             %k1 = comm.permute %k over ["cp"] by 1           so %v1
                                                  %o1, %l1 = nn.attention %q, %k1, %v1
                                                  %t, %w, %h = nn.merge_attention %o0, 1, %l0, %o1, %l1
                                                  %o, %l = %t / %w, %h + log %w

Where attention is causal, a rank's own block is causal, and another one is seen whole or not at all: a mask of one
number says which. Where there are offsets or other extents, each block counts from its own.

In the backward keys and values go round again, with the sums of their gradients behind them: those of a block start at
its next rank, and its own rank adds its part at the end. So n ranks pass everything n - 1 times. The permutes of keys
are numbered there (`use`): else `cse` would keep all blocks from the forward.

All ranks run the same ops on equal shapes, so where attention is causal a rank computes scores of blocks that its
queries do not see.

Source: Ring Attention (arXiv:2310.01889), and Sequence Parallelism (arXiv:2105.13120) before it; parts of a softmax are
merged as in FlashAttention (arXiv:2205.14135), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ...ir.bindings import Value
from ...ir.collectives import PERMUTE
from ...ir.operations import Call, build, set_use
from ...ir.types import TensorType, from_mlir, to_mlir
from .emitter import LocalEmitter, Shards, Types
from .vocabulary import cast

_ARGUMENTS = {"nn.attention": (0, 8), "nn.attention_backward": (1, 11)}
"""Where each op has its queries, before keys and values, and how many arguments; the last five are alike."""
_TOKENS = 2
_INDEX = TensorType(torch.int64, ())


class _Ring:
    """A rank's attention, and the blocks of keys that pass it: at step s that of the rank s places before it."""

    def __init__(self, emitter: LocalEmitter, axes: tuple[str, ...], call: Call) -> None:
        self.emitter, self.axes, self.size = emitter, axes, emitter.size(axes)
        self.query_at, count = _ARGUMENTS[call.name]
        self.name, self.args = call.name, [*call.args, *[None] * (count - len(call.args))]
        query, self.key, self.value = self.args[self.query_at : self.query_at + 3]
        *_, self.mask, causal, _, q_offset, self.given_offset = self.args
        self.queries, self.keys = (from_mlir(each.type).shape[_TOKENS] for each in (query, self.key))
        self.is_square = causal and self.queries == self.keys and q_offset is None and self.given_offset is None
        """Whether the own block is on the diagonal, and every other one on one side of it."""
        self.coordinate: Value | None = None
        """This rank's, where positions matter."""
        self.q_offset: Value | None = None
        if causal or self.mask is not None:
            self.coordinate = emitter.op("comm.offset", list(axes), 1, type=_INDEX)
            self.q_offset = self._position(self.coordinate, self.queries, q_offset)

    def passed(self, value: Value, use: int | None = None) -> Value:
        """What the rank before this one has."""
        made = self.emitter.op(PERMUTE, value, list(self.axes), 1, type=_bare(value))
        set_use(made.owner, use)
        return made

    def attend(self, step: int, key: Value, value: Value, types: Sequence[TensorType]) -> list[Value]:
        """The op on the block of a step; its results have the shapes of `types`."""
        args = list(self.args)
        args[self.query_at + 1 : self.query_at + 3] = key, value
        if self.coordinate is not None and (step or not self.is_square or self.mask is not None):
            block = self._block(self.coordinate, step)
            args[-5] = self._columns(block)
            args[-2:] = self.q_offset, self._position(block, self.keys, self.given_offset)
            if step and self.is_square:
                args[-5], args[-4] = self._whole_or_hidden(block, args[-5]), False
        bare = [to_mlir(TensorType(type_.dtype, type_.shape)) for type_ in types]
        return [*build(Call(self.name, tuple(args)), bare, self.emitter.loc)]

    def _block(self, coordinate: Value, step: int) -> Value:
        """The number of the block that has come after `step` steps."""
        if not step:
            return coordinate
        behind = self.emitter.like("aten.add.Scalar", coordinate, self.size - step)
        return self.emitter.like("aten.remainder.Scalar", behind, self.size)

    def _position(self, block: Value, extent: int, given: Value | None) -> Value:
        """The position of the first token of a block, counted from a given offset."""
        position = self.emitter.like("aten.mul.Scalar", block, extent)
        return position if given is None else self.emitter.like("aten.add.Tensor", position, given)

    def _whole_or_hidden(self, block: Value, mask: Value | None) -> Value:
        """The mask, -inf for a block that comes after the queries."""
        e = self.emitter
        if mask is None:
            type_ = TensorType(from_mlir(self.key.type).dtype, (1, 1))
            mask = e.op("aten.full.default", [1, 1], 0.0, type=type_, dtype=type_.dtype)
        hidden = e.op("aten.gt.Tensor", block, self.coordinate, type=replace(_INDEX, dtype=torch.bool))
        return e.op("aten.where.ScalarSelf", hidden, float("-inf"), mask, type=_bare(mask))

    def _columns(self, block: Value) -> Value | None:
        """The mask of the block's keys."""
        if self.mask is None or from_mlir(self.mask.type).shape[-1] == 1:
            return self.mask
        mask, row = from_mlir(self.mask.type), TensorType(torch.int64, (self.keys,))
        own = self.emitter.op("aten.arange.default", self.keys, type=row, dtype=torch.int64)
        columns = self.emitter.op("aten.add.Tensor", own, self._position(block, self.keys, None), type=row)
        type_ = TensorType(mask.dtype, (*mask.shape[:-1], self.keys))
        return self.emitter.op("aten.index_select.default", self.mask, len(mask.shape) - 1, columns, type=type_)


def _forward(emitter: LocalEmitter, call: Call, shards: Shards, types: Types) -> list[Value | None]:
    """The parts of all blocks, merged as they come."""
    ring, [out, logsumexp] = _Ring(emitter, shards.axes, call), _present(types)
    key, value, merged = ring.key, ring.value, list[Value]()
    for step in range(ring.size):
        if step:
            key, value = ring.passed(key), ring.passed(value)
        part = ring.attend(step, key, value, [out, logsumexp])
        merged = _first(emitter, *part) if not step else _merged(emitter, merged, part)
    total, weight, highest = merged
    # A row that sees a key weighs 1 at least, that of its highest part; a row that sees none has 0 / 1 and -inf.
    least = emitter.like("aten.clamp_min.default", weight, 1.0)
    column = TensorType(logsumexp.dtype, (*logsumexp.shape, 1))
    divisor = emitter.op("aten.unsqueeze.default", least, -1, type=column)
    mean = emitter.op("aten.div.Tensor", total, divisor, type=replace(out, dtype=logsumexp.dtype))
    logs = emitter.like("aten.log.default", weight)
    return [cast(emitter, mean, out.dtype), emitter.op("aten.add.Tensor", highest, logs, type=logsumexp)]


def _backward(emitter: LocalEmitter, call: Call, shards: Shards, types: Types) -> list[Value | None]:
    """Gradients of queries add up here; those of keys and values follow their block, and end where it is at home."""
    ring, [of_query, *of_block] = _Ring(emitter, shards.axes, call), _present(types)
    key, value, sums = ring.key, ring.value, list[Value]()

    def added(one: Value, other: Value, type_: TensorType) -> Value:
        return emitter.op("aten.add.Tensor", one, other, type=type_)

    grad_query, *own = ring.attend(0, key, value, [of_query, *of_block])
    for step in range(1, ring.size):
        key, value = ring.passed(key, use=1), ring.passed(value, use=1)
        more, *part = ring.attend(step, key, value, [of_query, *of_block])
        grad_query = added(grad_query, more, of_query)
        passed = [ring.passed(each) for each in sums]
        sums = [added(*pair) for pair in zip(passed, part, of_block, strict=True)] if sums else part
    return [grad_query, *(added(ring.passed(s), mine, t) for s, mine, t in zip(sums, own, of_block, strict=True))]


def _first(emitter: LocalEmitter, out: Value, logsumexp: Value) -> list[Value]:
    """A part as `nn.merge_attention` takes one: its total, and weight 1 for a row that sees a key, else 0."""
    rows = from_mlir(logsumexp.type)
    sees = emitter.op("aten.ne.Scalar", logsumexp, float("-inf"), type=replace(rows, dtype=torch.bool))
    return [cast(emitter, out, rows.dtype), cast(emitter, sees, rows.dtype), logsumexp]


def _merged(emitter: LocalEmitter, merged: Sequence[Value], part: Sequence[Value]) -> list[Value]:
    call = Call("nn.merge_attention", (*merged, *part))
    return [*build(call, [each.type for each in merged], emitter.loc)]


def _present(types: Types) -> list[TensorType]:
    assert None not in types, "attention computes all its results"
    return [type_ for type_ in types if type_ is not None]


def _bare(value: Value) -> TensorType:
    """The type of a value that stands for a part of no global tensor."""
    type_ = from_mlir(value.type)
    return TensorType(type_.dtype, type_.shape)


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Shards, Types], list[Value | None]]] = {
    "nn.attention": _forward,
    "nn.attention_backward": _backward,
}
"""What a rank computes in place of attention whose queries and keys are both sharded by tokens."""
