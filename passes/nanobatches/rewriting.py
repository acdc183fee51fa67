"""Build a function whose operations run on nanobatches: parts are taken and joined where one needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ...ir.bindings import Location, Value, mlir
from ...ir.dialects.context import context
from ...ir.lanes import lane_of
from ...ir.module import (
    Module,
    argument_records,
    build_call,
    build_function,
    entry,
    finish_function,
    result_records,
    terminator,
)
from ...ir.operations import Call, build, copy_attributes, flatten, made_by, regroup
from ...ir.placement import Partial
from ...ir.types import TensorType, absent, from_mlir, is_tensor, to_mlir
from ..graph import Node, build_like
from ..partition.attention import with_offset
from ..partition.localize import with_local_sizes
from ..rewriting import Emitter
from ..sharding.rules.ir_calls import metas
from .cuts import Cut
from .order import Order
from .placing import Copied, Placing


@dataclass
class Rewriting:
    """The rewrite of one function."""

    placing: Placing
    new_module: Module
    name: str
    interleaves: bool
    values: dict[Value, Value] = field(default_factory=dict)
    """From whole values of the old function to those of the new one."""
    parts: dict[Value, list[Value]] = field(default_factory=dict)
    """From values of the old function to their nanobatches in the new one."""
    _taken: dict[tuple[Value, Cut], dict[int, Value]] = field(default_factory=dict)
    """Nanobatches of whole values."""
    _starts: dict[int, Value] = field(default_factory=dict)
    """The first position of a nanobatch, as a value."""

    def run(self) -> Copied:
        """Build the function."""
        placing, old = self.placing, self.placing.graph.function
        arguments = list(entry(old).arguments)
        types = [type_ for value in arguments for type_ in self._types(value)]
        is_main = placing.signature.name == "main"
        new = build_function(self.new_module, self.name, types, records=argument_records(old) if is_main else None)
        given = iter(entry(new).arguments)
        for value in arguments:
            if value in placing.parted:
                self.parts[value] = [next(given) for _ in range(self._count)]
            else:
                self.values[value] = next(given)
        results = list(terminator(old).operands)
        in_parts = tuple(not is_main and value in placing.parted for value in results)
        with context(), mlir.InsertionPoint(entry(new)):
            for node, index in Order(placing, self.interleaves).steps():
                if node in placing.calls:
                    self._call(node)
                elif index is None:
                    self._once(node)
                else:
                    self._on_nanobatch(node, index)
            returned = [
                each
                for value, is_parted in zip(results, in_parts, strict=True)
                for each in (self.parts[value] if is_parted else [self._whole(value, terminator(old).location)])
            ]
        finish_function(new, returned, result_records(old) if is_main else None)
        return Copied(self.name, tuple(placing.cuts.get(value) for value in results), in_parts)

    @property
    def _count(self) -> int:
        return self.placing.region.parts.count

    def _types(self, value: Value) -> list[mlir.Type]:
        """The types of a value of the old function in the new one."""
        if value not in self.placing.parted:
            return [value.type]
        cut, type_ = self.placing.cuts[value], from_mlir(value.type)
        return [to_mlir(cut.part(type_, size)) for size in self.placing.region.parts.sizes]

    def _once(self, node: Node) -> None:
        operands = [self._whole(value, node.op.location) for value in node.operands]
        types = regroup(node.results, [v.type for v in node.values])
        made = flatten(build_like(node, operands, types, node.op.location))
        self.values.update(zip(node.values, made, strict=True))

    def _call(self, node: Node) -> None:
        signature, copied = self.placing.calls[node]
        operands: list[Value] = []
        for value, cut, in_parts in zip(node.operands, signature.cuts, signature.in_parts, strict=True):
            if in_parts and cut is not None:
                operands += [self._part(value, cut, index, node.op.location) for index in range(self._count)]
            else:
                operands.append(self._whole(value, node.op.location))
        types = [type_ for value in node.values for type_ in self._types(value)]
        made = iter(build_call(copied.name, operands, types, node.op.location))
        for value, in_parts in zip(node.values, copied.in_parts, strict=True):
            if in_parts:
                self.parts[value] = [next(made) for _ in range(self._count)]
            else:
                self.values[value] = next(made)

    def _on_nanobatch(self, node: Node, index: int) -> None:
        """Build the node on one nanobatch; a sum grows with each."""
        assert node.call is not None
        way, loc = self.placing.ways[node], node.op.location
        operands = [
            self._part(value, placed, index, loc) if isinstance(placed, Cut) else self._whole(value, loc)
            for value, placed in zip(node.operands, way.inputs, strict=True)
        ]
        types = [from_mlir(v.type) if is_tensor(v.type) else None for v in node.values]
        size = self.placing.region.parts.sizes[index]
        local = [
            t if t is None or not isinstance(placed, Cut) else placed.part(t, size)
            for t, placed in zip(types, way.outputs, strict=True)
        ]
        made = self._build(node, operands, types, local, index)
        for value, new, placed in zip(node.values, made, way.outputs, strict=True):
            if isinstance(placed, Cut):
                self.parts.setdefault(value, []).append(new)
            elif isinstance(placed, Partial) and index:
                self.values[value] = Emitter(loc).like("aten.add.Tensor", self.values[value], new)
            else:
                self.values[value] = new

    def _build(
        self,
        node: Node,
        operands: Sequence[Value],
        types: Sequence[TensorType | None],
        local: Sequence[TensorType | None],
        index: int,
    ) -> list[Value]:
        assert node.call is not None
        loc = node.op.location
        call = node.call.replace_values(operands)
        if self.placing.ways[node].counts_queries and index:
            call = with_offset(call, self._start(index, loc), Emitter(loc))
        shapes = [None if t is None else t.shape for t in local]
        name, args, kwargs = with_local_sizes(call.name, call.args, call.kwargs, metas(types), shapes)
        flat = [absent() if t is None else to_mlir(t) for t in local]
        built = flatten(
            build(Call(name, tuple(args), dict(kwargs)), regroup(node.results, flat), loc, lane_of(node.op))
        )
        copy_attributes(node.op, made_by(built[0]))
        return built

    def _start(self, index: int, loc: Location) -> Value:
        if index not in self._starts:
            start = self.placing.region.parts.borders[index]
            type_ = TensorType(torch.int64, ())
            self._starts[index] = Emitter(loc).op("aten.full.default", [], start, type=type_, dtype=torch.int64)
        return self._starts[index]

    def _part(self, value: Value, cut: Cut, index: int, loc: Location) -> Value:
        if value in self.parts:
            return self.parts[value][index]
        taken = self._taken.setdefault((value, cut), {})
        if index not in taken:
            taken[index] = self.placing.region.parts.take(self.values[value], cut, index, Emitter(loc))
        return taken[index]

    def _whole(self, value: Value, loc: Location) -> Value:
        if value not in self.values:
            parts, cut = self.parts[value], self.placing.cuts[value]
            self.values[value] = self.placing.region.parts.join(parts, from_mlir(value.type), cut, Emitter(loc))
        return self.values[value]
