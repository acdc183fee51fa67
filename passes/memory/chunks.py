"""Rebuild main with the operations of a region in chunks, forward and backward apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...ir.bindings import Location, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import CHUNK, SPLIT_LOSS, to_location
from ...ir.module import (
    Module,
    argument_records,
    build_function,
    entry,
    finish_function,
    result_records,
    terminator,
)
from ...ir.operations import Call, build, flatten, regroup
from ...ir.placement import Partial
from ...ir.types import TensorType, absent, from_mlir, is_tensor, to_mlir
from ..graph import Node, copy_node
from ..partition.localize import with_local_sizes
from ..rewriting import Emitter
from ..sharding.rules.ir_calls import metas
from .loss_region import Cut, LossRegion, Placed, numel


@dataclass
class Chunked:
    """The rewrite of main."""

    module: Module
    region: LossRegion
    values: dict[Value, Value] = field(default_factory=dict)
    """From values of the old main to those of the new one."""
    parts: dict[Value, list[Value]] = field(default_factory=dict)
    """Of a value of the region: that of each chunk."""

    def run(self) -> int:
        """Replace main; returns how many operations run in chunks."""
        graph, region = self.region.graph, self.region
        region.ways  # noqa: B018  # refuses before anything changes
        old = graph.function
        types = [a.type for a in entry(old).arguments]
        new = build_function(self.module, "main", types, records=argument_records(old))
        new.move_before(old)
        self.values.update(zip(entry(old).arguments, entry(new).arguments, strict=True))
        forward = [node for node in region.nodes if node not in region.backward]
        backward = [node for node in region.nodes if node in region.backward]
        waiting: list[Node] = []
        with context(), mlir.InsertionPoint(entry(new)):
            for node in graph.nodes:
                if node in (forward[-1], *backward[-1:]):
                    self._chunks(forward if node is forward[-1] else backward)
                    waiting = [each for each in waiting if not self._copied(each)]
                elif node not in region.ways and not self._copied(node):
                    waiting.append(node)
            results = [self.values[v] for v in terminator(old).operands]
        assert not waiting
        finish_function(new, results, result_records(old))
        old.erase()
        return len(region.nodes)

    def _copied(self, node: Node) -> bool:
        """Copy a node, unless it needs what is not there yet."""
        if any(value not in self.values for value in node.operands):
            return False
        copy_node(node, self.values)
        return True

    def _chunks(self, nodes: Sequence[Node]) -> None:
        """All chunks of the region's nodes of one direction, and what others read of them."""
        sums: dict[Value, Value] = {}
        placed: dict[Value, Placed] = {}
        for chunk in range(self.region.statement.chunks):
            for node in nodes:
                outputs = self.region.ways[node].outputs
                for value, made, placement in zip(node.values, self._on_chunk(node, chunk), outputs, strict=True):
                    self.parts.setdefault(value, []).append(made)
                    placed[value] = placement
                    if isinstance(placement, Partial) and self._is_read_outside(value):
                        emitter = Emitter(node.op.location)
                        sums[value] = made if chunk == 0 else emitter.like("aten.add.Tensor", sums[value], made)
        for value, placement in placed.items():
            if self._is_read_outside(value):
                joined = self._joined(value, placement) if isinstance(placement, Cut) else self.parts[value][0]
                self.values[value] = sums.get(value, joined)

    def _is_read_outside(self, value: Value) -> bool:
        users = self.region.graph.users.get(value, ())
        returned = value in set(terminator(self.region.graph.function).operands)
        return returned or any(user not in self.region.ways for user in users)

    def _on_chunk(self, node: Node, chunk: int) -> list[Value]:
        """The node on one chunk: its results."""
        assert node.call is not None
        way = self.region.ways[node]
        operands = [
            self._operand(value, placement, chunk, node.op.location)
            for value, placement in zip(node.operands, way.inputs, strict=True)
        ]
        types = [from_mlir(v.type) if is_tensor(v.type) else None for v in node.values]
        local = [self._local(t, p) for t, p in zip(types, way.outputs, strict=True)]
        call = node.call.replace_values(operands)
        shapes = [None if t is None else t.shape for t in local]
        name, args, kwargs = with_local_sizes(call.name, call.args, call.kwargs, metas(types), shapes)
        makes_scores = any(numel(v) == numel(self.region.head.values[0]) for v in node.values)
        loc = to_location(node.origin, SPLIT_LOSS if makes_scores and not node.origin.backward else CHUNK)
        flat = [absent() if t is None else to_mlir(t) for t in local]
        return flatten(build(Call(name, tuple(args), dict(kwargs)), regroup(node.results, flat), loc))

    def _operand(self, value: Value, placement: Placed, chunk: int, loc: Location) -> Value:
        if value in self.parts:
            return self.parts[value][chunk]
        return (
            self._cut(self.values[value], placement, chunk, loc) if isinstance(placement, Cut) else self.values[value]
        )

    def _local(self, type_: TensorType | None, placement: Placed) -> TensorType | None:
        if type_ is None or not isinstance(placement, Cut):
            return type_
        extent = type_.shape[placement.dim] // self.region.statement.chunks
        return _with(type_, placement.dim, (extent,))

    def _cut(self, value: Value, cut: Cut, chunk: int, loc: Location) -> Value:
        """The rows of one chunk; of a dim that ranks share, those of each rank's own part."""
        emitter, whole = Emitter(loc), from_mlir(value.type)
        type_, dim = TensorType(whole.dtype, whole.shape), cut.dim
        parts, chunks = self._parts * cut.before, self.region.statement.chunks
        size = type_.shape[dim] // (parts * chunks)
        if parts == 1:
            taken = _with(type_, dim, (size,))
            return emitter.op("aten.slice.Tensor", value, dim, chunk * size, (chunk + 1) * size, type=taken)
        apart, own = _with(type_, dim, (parts, chunks, size)), _with(type_, dim, (parts, 1, size))
        viewed = emitter.op("aten.reshape.default", value, list(apart.shape), type=apart)
        taken_value = emitter.op("aten.slice.Tensor", viewed, dim + 1, chunk, chunk + 1, type=own)
        flat = _with(type_, dim, (parts * size,))
        return emitter.op("aten.reshape.default", taken_value, list(flat.shape), type=flat)

    def _joined(self, value: Value, cut: Cut) -> Value:
        """All rows of a value of the region."""
        type_, dim, parts = from_mlir(value.type), cut.dim, self._parts * cut.before
        emitter, chunks = Emitter(self.region.graph.maker[value].op.location), self.region.statement.chunks
        if parts == 1:
            return emitter.op("aten.cat.default", self.parts[value], dim, type=type_)
        size = type_.shape[dim] // (parts * chunks)
        one = _with(type_, dim, (parts, 1, size))
        apart = [emitter.op("aten.reshape.default", part, list(one.shape), type=one) for part in self.parts[value]]
        joined = emitter.op("aten.cat.default", apart, dim + 1, type=_with(type_, dim, (parts, chunks, size)))
        return emitter.op("aten.reshape.default", joined, list(type_.shape), type=type_)

    @property
    def _parts(self) -> int:
        return self.region.parts_of(self.region.dim)


def _with(type_: TensorType, dim: int, extents: tuple[int, ...]) -> TensorType:
    """The type with other extents in place of a dim."""
    return replace(type_, shape=(*type_.shape[:dim], *extents, *type_.shape[dim + 1 :]))
