"""The halo of one cut dim: elements of neighbours around a rank's own chunk, and the way back of their gradients.

Before (a convolution of 3 rows, sp=2)          After
  %y = aten.convolution %x, %w  padding 1         %a = comm.permute (last row of %x) over ["sp"] by 1
                                                  %b = comm.permute (first row of %x) over ["sp"] by -1
                                                  %e = aten.cat [%a, or 0 on the first rank; %x; %b, or 0 on the last]
                                                  %y = aten.convolution %e, %w  padding 0

A permute is a rotation, so what the outermost ranks receive has come round: the op's own padding takes its place.
Where the halo is longer than a chunk, further permutes bring rows from further away; where it is longer than all other
chunks, a gather brings them. Gradients of the halo travel back and are added where they came from.

Source: Dryden et al., "Improving strong-scaling of CNN training by exploiting finer-grained parallelism"
(arXiv:1903.06681).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ....ir.bindings import Value
from ....ir.collectives import ALL_GATHER, PERMUTE, REDUCE_SCATTER
from ....ir.operations import set_use
from ....ir.types import TensorType, element_bytes, from_mlir
from ...sharding.rules.windows import Edge, Halo, Linear, Window
from ..emitter import LocalEmitter

_INDEX = TensorType(torch.int64, ())
_FLAG = TensorType(torch.bool, ())


@dataclass(frozen=True)
class Cut:
    """A dim of an image that ranks cut, and the window by which an op reads it."""

    dim: int
    axes: tuple[str, ...]
    window: Window
    halo: Halo


class Exchange:
    """The halo of one cut dim; `fill` is what the op reads beyond the ends of the dim."""

    def __init__(self, emitter: LocalEmitter, cut: Cut, fill: float = 0.0, use: int | None = None) -> None:
        self.emitter, self.cut, self.halo, self.fill, self.use = emitter, cut, cut.halo, fill, use

    def read(self, value: Value) -> Value:
        """What the op reads, of a rank's own chunk."""
        halo, held = self.halo, self._gathered(value) if self.halo.gathers else self._joined(value)
        edge = self.cut.window.edge
        if edge is not Edge.FILL or halo.reads.drift != halo.has.drift:
            lead, trail = (0, 0) if edge is not Edge.FILL else self._missing()
            padded = self.padded(held, lead, trail, self.fill)
            return self._picked(padded, self._places(lead, held=halo.held + lead + trail))
        return self.section(held, halo.reads.start - halo.has.start, halo.taken, self.fill)

    def sent_back(self, gradient: Value) -> Value:
        """The gradient of the own chunk, of the gradient of what the op read: the transpose of `read`."""
        halo, edge = self.halo, self.cut.window.edge
        if edge is not Edge.FILL or halo.reads.drift != halo.has.drift:
            lead, trail = (0, 0) if edge is not Edge.FILL else self._missing()
            whole = self._spread(gradient, self._places(lead, held=halo.held + lead + trail), halo.held + lead + trail)
            held = self.section(whole, lead, halo.held)
        else:
            held = self.section(gradient, halo.has.start - halo.reads.start, halo.held)
        return self._scattered(held) if halo.gathers else self._added(held)

    def kept(self, value: Value) -> Value:
        """The rank's outputs, of all that the op has made."""
        halo = self.halo
        if halo.keeps.drift:
            return self._picked(value, self._clamped(self._moving(halo.keeps, halo.kept), halo.made))
        return self.section(value, halo.keeps.start, halo.kept)

    def unkept(self, gradient: Value) -> Value:
        """The gradient of all that the op has made, of the rank's outputs: the transpose of `kept`."""
        halo = self.halo
        if halo.keeps.drift:
            return self._spread(gradient, self._clamped(self._moving(halo.keeps, halo.kept), halo.made), halo.made)
        return self.section(gradient, -halo.keeps.start, halo.made)

    def section(self, value: Value, start: int, length: int, fill: float = 0.0) -> Value:
        """Elements `start` to `start + length` of the dim; `fill` where there are none."""
        extent = self._extent(value)
        end = start + length
        inner = self._slice(value, max(start, 0), min(end, extent))
        return self.padded(inner, max(-start, 0), max(end - extent, 0), fill)

    def padded(self, value: Value, before: int, after: int, fill: float) -> Value:
        """The value with constants around it."""
        if not (before or after):
            return value
        type_ = from_mlir(value.type)
        pads = [0, 0] * (len(type_.shape) - 1 - self.cut.dim) + [before, after]
        longer = self._with(value, self._extent(value) + before + after)
        return self.emitter.op("aten.constant_pad_nd.default", value, pads, fill, type=longer)

    def _joined(self, value: Value) -> Value:
        """The own chunk between those parts of others that the halo has."""
        before, after = (
            [self._received(value, hop, width) for hop, width in self._hops(reach)]
            for reach in (-self.halo.before, self.halo.after)
        )
        parts = [*reversed(before), value, *after]
        if len(parts) == 1:
            return value
        type_ = self._with(value, self.halo.held)
        return self.emitter.op("aten.cat.default", parts, self.cut.dim, type=type_)

    def _hops(self, reach: int) -> Iterator[tuple[int, int]]:
        """For each rank that the halo reaches in one direction: how many places away it is, and how much it gives."""
        sign, left = (1 if reach > 0 else -1), abs(reach)
        for hop in range(1, -(-left // self.halo.chunk) + 1):
            yield sign * hop, min(self.halo.chunk, left - (hop - 1) * self.halo.chunk)

    def _received(self, value: Value, hop: int, width: int) -> Value:
        """What the rank `hop` places further gives; the fill where there is no such rank."""
        start = 0 if hop > 0 else self.halo.chunk - width
        passed = self._permuted(self._slice(value, start, start + width), -hop)
        return passed if self.cut.window.edge is not Edge.FILL else self._or(passed, hop, self.fill)

    def _added(self, held: Value) -> Value:
        """The own part of a gradient, and what has come back of others."""
        halo = self.halo
        own = self._slice(held, halo.before, halo.before + halo.chunk)
        for reach in (-halo.before, halo.after):
            for hop, width in self._hops(reach):
                # what this rank had of the one `hop` places further goes there, and comes here from the other side
                start = halo.before + (hop * halo.chunk if hop > 0 else hop * halo.chunk + halo.chunk - width)
                back = self._permuted(self._slice(held, start, start + width), hop)
                place = 0 if hop > 0 else halo.chunk - width
                own = self._sum_at(own, self._or(back, -hop, 0.0), place)
        return own

    def _sum_at(self, value: Value, part: Value, start: int) -> Value:
        """The value with a part added at one place."""
        width, extent = self._extent(part), self._extent(value)
        added = self.emitter.op(
            "aten.add.Tensor", self._slice(value, start, start + width), part, type=from_mlir(part.type)
        )
        around = (self._slice(value, 0, start), added, self._slice(value, start + width, extent))
        parts = [each for each in around if self._extent(each)]
        if len(parts) == 1:
            return added
        return self.emitter.op("aten.cat.default", parts, self.cut.dim, type=self._with(value, extent))

    def _or(self, value: Value, hop: int, fill: float) -> Value:
        """The value where there is a rank `hop` places further, else the fill."""
        e = self.emitter
        coordinate = e.op("comm.offset", list(self.cut.axes), 1, type=_INDEX)
        name, bound = ("aten.lt.Scalar", self.halo.parts - hop) if hop > 0 else ("aten.ge.Scalar", -hop)
        exists = e.op(name, coordinate, bound, type=_FLAG)
        return e.op("aten.where.ScalarOther", exists, value, fill, type=from_mlir(value.type))

    def _permuted(self, value: Value, shift: int) -> Value:
        made = self.emitter.op(PERMUTE, value, list(self.cut.axes), shift, type=from_mlir(value.type))
        self.emitter.halo_bytes += element_bytes(from_mlir(value.type))
        set_use(made.owner, self.use)
        return made

    def _gathered(self, value: Value) -> Value:
        type_ = self._with(value, self.halo.held)
        self.emitter.halo_bytes += element_bytes(from_mlir(value.type)) * (self.halo.parts - 1)
        made = self.emitter.op(ALL_GATHER, value, list(self.cut.axes), self.cut.dim, type=type_)
        set_use(made.owner, self.use)
        return made

    def _scattered(self, gradient: Value) -> Value:
        type_ = self._with(gradient, self.halo.chunk)
        self.emitter.halo_bytes += element_bytes(type_) * (self.halo.parts - 1)
        return self.emitter.op(REDUCE_SCATTER, gradient, list(self.cut.axes), self.cut.dim, "sum", type=type_)

    def _missing(self) -> tuple[int, int]:
        """How many constants some rank needs before and after what it has."""
        halo, ranks = self.halo, range(self.halo.parts)
        lead = max(halo.has.at(rank) - halo.reads.at(rank) for rank in ranks)
        trail = max(halo.reads.at(rank) + halo.taken - halo.has.at(rank) - halo.held for rank in ranks)
        return max(0, lead), max(0, trail)

    def _places(self, lead: int, held: int) -> Value:
        """Where the elements that the op reads are in what the rank has, behind `lead` constants."""
        halo, edge, last = self.halo, self.cut.window.edge, self.cut.window.inputs - 1
        if edge is Edge.FILL:
            reads = Linear(halo.reads.start - halo.has.start + lead, halo.reads.drift - halo.has.drift)
            return self._clamped(self._moving(reads, halo.taken), held)
        e, places = self.emitter, self._moving(halo.reads, halo.taken)
        if edge is Edge.REFLECT:
            from_end = e.like("aten.rsub.Scalar", e.like("aten.abs.default", places), last)
            places = e.like("aten.rsub.Scalar", e.like("aten.abs.default", from_end), last)
        else:
            places = self._clamped(places, last + 1)
        has = self.scaled(halo.has.drift)
        if has is not None:
            places = e.like("aten.sub.Tensor", places, has)
        return self._clamped(e.like("aten.sub.Scalar", places, halo.has.start), held)

    def _moving(self, first: Linear, length: int) -> Value:
        """So many places from one on that moves with the rank."""
        e, type_ = self.emitter, TensorType(torch.int64, (length,))
        own = e.op("aten.arange.start", first.start, first.start + length, type=type_, dtype=torch.int64)
        moved = self.scaled(first.drift)
        return own if moved is None else e.op("aten.add.Tensor", own, moved, type=type_)

    def scaled(self, factor: int) -> Value | None:
        """The rank's number times the factor; None for a factor of 0."""
        if not factor:
            return None
        coordinate = self.emitter.op("comm.offset", list(self.cut.axes), 1, type=_INDEX)
        return self.emitter.like("aten.mul.Scalar", coordinate, factor)

    def _clamped(self, places: Value, extent: int) -> Value:
        """Ranks that have padding alone read what there is."""
        return self.emitter.like("aten.clamp.default", places, 0, extent - 1)

    def _picked(self, value: Value, places: Value) -> Value:
        type_ = self._with(value, from_mlir(places.type).shape[0])
        return self.emitter.op("aten.index_select.default", value, self.cut.dim, places, type=type_)

    def _spread(self, gradient: Value, places: Value, extent: int) -> Value:
        """The transpose of `_picked`: an element that was read several times gets a sum."""
        type_ = self._with(gradient, extent)
        zeros = self.emitter.op("aten.full.default", list(type_.shape), 0.0, type=type_, dtype=type_.dtype)
        return self.emitter.op("aten.index_add.default", zeros, self.cut.dim, places, gradient, type=type_)

    def _slice(self, value: Value, start: int, end: int) -> Value:
        if start == 0 and end == self._extent(value):
            return value
        type_ = self._with(value, end - start)
        return self.emitter.op("aten.slice.Tensor", value, self.cut.dim, start, end, type=type_)

    def _extent(self, value: Value) -> int:
        return from_mlir(value.type).shape[self.cut.dim]

    def _with(self, value: Value, extent: int) -> TensorType:
        """The type with another extent of the dim. It has no placement: chunks with halos overlap."""
        type_, dim = from_mlir(value.type), self.cut.dim
        return TensorType(type_.dtype, (*type_.shape[:dim], extent, *type_.shape[dim + 1 :]))
