"""Replace global tensors by one rank's local ones, and make communication explicit.

Before (global shapes)                                After (local shapes, over tp=2)
  %h = aten.mm %x, %w : .. -> t<8x64, {tp=shard(1)}>    %h = aten.mm %x, %w : .. -> t<8x32, {tp="shard(1)"}>
  %y = aten.mm %h, %v : .. -> t<8x16, {tp=partial}>     %y = aten.mm %h, %v : .. -> t<8x16, {tp="partial(sum)"}>
  %r = comm.reshard %y : .. -> t<8x16>                  %r = comm.all_reduce %y over ["tp"] sum

A dim that its axes do not divide is padded to whole chunks; where an op would reduce the padding with the rest, the
padding is masked first. Ops over a sharded vocabulary become lookups of a rank's own indices
(`partition/vocabulary.py`), and a batch norm over a sharded batch all-reduces its statistics
(`partition/batch_norm.py`). Ops on images that are cut in space exchange halos with neighbours (`partition/images/`).

Needs: level `aten`, placements propagated (`propagate-placements`).   Keeps: values, up to the order of sums.
Source: GSPMD (arXiv:2105.04663), section 3.5, for halo-free partitioning with padding and masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir.attention_methods import BIDIRECTIONAL, ZIGZAG_BIDIRECTIONAL, band_of, methods_of
from ...ir.attributes import from_attribute
from ...ir.bindings import Operation, Type, Value, mlir
from ...ir.collectives import COLLECTIVES, RESHARD
from ...ir.dialects.context import context
from ...ir.locations import from_location, of_idiom
from ...ir.module import (
    Level,
    Module,
    argument_records,
    build_call,
    build_function,
    callee,
    entry,
    finish_function,
    name_of,
    operations,
    result_records,
    terminator,
)
from ...ir.operations import Call, build, flatten, is_packing, read, regroup, results_of, use_of
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Placement, Shard, is_even
from ...ir.types import TensorType, from_mlir, is_tensor, to_mlir
from ..base import Pass, Remark, RemarkKind, Report
from ..collective_text import collective_text
from ..counted_remarks import CountedRemarks
from ..rewriting import producer
from ..sharding.rules import Lowering, Strategy
from ..sharding.rules.ir_calls import blocks_in, call_strategies, metas
from ..sharding.rules.windows import Window
from . import attention, batch_norm, bidirectional_attention, class_losses, experts, ring_attention, scans, vocabulary
from .blocks import has_blocks, with_local_blocks
from .emitter import LocalEmitter, Shards, local_type
from .images import convolution, group_norm, halo_remarks, planes
from .localize import with_local_sizes
from .random_numbers import RANDOM, draw
from .reshard import Resharder

_BIDIRECTIONAL = {BIDIRECTIONAL, ZIGZAG_BIDIRECTIONAL}
_LOWERINGS = {**attention.LOWERINGS, **class_losses.LOWERINGS, **vocabulary.LOWERINGS}
_IMAGES = {**batch_norm.LOWERINGS, **convolution.LOWERINGS, **group_norm.LOWERINGS, **planes.LOWERINGS}
"""Of ops that may be cut on several dims at once."""


@dataclass(frozen=True)
class PartitionTensors(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "partition-tensors"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        new_module = module.successor()
        new_module.level = Level.COMM
        count, halos = 0, CountedRemarks(self.name)
        for function in module.functions().values():
            count += _Partitioner(function, new_module, halos).rewrite()
        module.become(new_module)
        return Report(count, (*_communication(module), *halos.remarks()))


def _communication(module: Module) -> tuple[Remark, ...]:
    """Remarks of the collectives that were inserted, and of the dims whose padding is masked."""
    remarks = CountedRemarks(PartitionTensors.name)
    for function in module.functions().values():
        for op in operations(function):
            name = op.operation.name
            if name in COLLECTIVES:
                remarks.applied(collective_text(op), from_location(op.location))
            elif name == "comm.mask":
                axes = ", ".join(axis for axis in from_attribute(op.attributes["axes"]) if axis != MICROBATCH)
                message = f"padding masked: {axes} does not divide a dim that is added up"
                remarks.add(RemarkKind.NOTE, message, from_location(op.location))
    return remarks.remarks()


class _Partitioner:
    """The rewrite of one function; `values` maps its old values to new ones."""

    def __init__(self, function: Operation, module: Module, halos: CountedRemarks) -> None:
        self.mesh: Mesh = module.mesh
        self.halos = halos
        self.blocks = blocks_in(module)
        self.old = function
        name = name_of(function)
        types = [self._local(a.type) for a in entry(function).arguments]
        records = argument_records(function) if name == "main" else None
        self.new = build_function(module, name, types, records=records)
        self.values: dict[Value, Value] = dict(zip(entry(function).arguments, entry(self.new).arguments, strict=True))

    def rewrite(self) -> int:
        """Rewrite all operations; returns how many there were."""
        body = list(operations(self.old))[:-1]
        with context(), mlir.InsertionPoint(entry(self.new)):
            for op in body:
                if not is_packing(op):
                    for old, new in zip(flatten(results_of(op)), self._rewrite(op), strict=True):
                        if new is not None:
                            self.values[old] = new
        records = result_records(self.old) if name_of(self.old) == "main" else None
        finish_function(self.new, [self.values[v] for v in terminator(self.old).operands], records)
        return len(body)

    def _rewrite(self, op: Operation) -> Sequence[Value | None]:
        name = callee(op)
        if name is not None:
            types = [self._local(r.type) for r in op.results]
            return build_call(name, [self.values[v] for v in op.operands], types, op.location)
        call = read(op)
        if call is None:
            raise RuntimeError(f"partition-tensors met an operation it does not know: {op}")
        emitter = LocalEmitter(self.mesh, of_idiom(op))
        if call.name == RESHARD:
            return [self._reshard(call.args[0], from_mlir(op.results[0].type), emitter, use_of(op))]
        return self._partition(op, call, emitter)

    def _reshard(self, value: Value, target: TensorType, emitter: LocalEmitter, use: int | None) -> Value:
        source = from_mlir(value.type)
        random = producer(value)
        if random is not None and random.name == RANDOM:
            operands = [self.values[v] for v in random.values()]
            placement = target.placement_on(self.mesh)
            if not placement.blocks:
                return draw(random, operands, source, placement, emitter)
            whole = placement.without([axis for d, _ in placement.blocks for axis in placement.dims[d]])
            drawn = draw(random, operands, source, whole, emitter)
            return Resharder(emitter, drawn, source.shape, whole, use).to(placement)
        resharder = Resharder(emitter, self.values[value], source.shape, source.placement_on(self.mesh), use)
        return resharder.to(target.placement_on(self.mesh))

    def _partition(self, op: Operation, call: Call, emitter: LocalEmitter) -> Sequence[Value | None]:
        old_values = call.values()
        results = results_of(op)
        types = [from_mlir(r.type) if is_tensor(r.type) else None for r in flatten(results)]
        if call.name == RANDOM and types[0] is not None:
            operands = [self.values[v] for v in old_values]
            return [draw(call, operands, types[0], types[0].placement_on(self.mesh), emitter)]
        chosen = self._strategies(call, old_values, types)
        operands = [self._masked(i, v, chosen, emitter) for i, v in enumerate(old_values)]
        local = call.replace_values(operands)
        local_types = [None if t is None else local_type(t, self.mesh) for t in types]
        if call.name in experts.PRODUCTS:
            by_expert = old_values[1] if call.name == "nn.expert_linear" else flatten(results)[0]
            axes = from_mlir(by_expert.type).placement_on(self.mesh).dims[0]
            assert local_types[0] is not None
            return [experts.local_product(local, axes, local_types[0], emitter)]
        shapes = [None if t is None else t.shape for t in local_types]
        lowered = [strategy for _, strategy in chosen if strategy.lowering is not None]
        if lowered and lowered[0].lowering in (Lowering.HALO, Lowering.STATISTICS):
            cuts = [self._shards(strategy, old_values, types) for strategy in dict.fromkeys(lowered)]
            name, args, kwargs = with_local_sizes(local.name, local.args, local.kwargs, metas(types), shapes)
            made = _IMAGES[call.name](emitter, Call(name, tuple(args), dict(kwargs)), cuts, local_types)
            if lowered[0].lowering is Lowering.HALO:
                halo_remarks.remark(self.halos, emitter, cuts, from_location(op.location))
            return made
        if lowered:
            shards = self._shards(lowered[0], old_values, types)
            if lowered[0].lowering is Lowering.RING:
                is_bidirectional = not _BIDIRECTIONAL.isdisjoint(methods_of(op).values())
                rings = bidirectional_attention.LOWERINGS if is_bidirectional else ring_attention.LOWERINGS
                return rings[call.name](emitter, local, shards, local_types, band_of(op))
            lowerings = scans.LOWERINGS if lowered[0].lowering is Lowering.STATE else _LOWERINGS
            return lowerings[call.name](emitter, local, shards, local_types)
        localized = with_local_blocks if any(has_blocks(strategy) for _, strategy in chosen) else with_local_sizes
        name, args, kwargs = localized(local.name, local.args, local.kwargs, metas(types), shapes)
        flat = [r.type if t is None else to_mlir(t) for r, t in zip(flatten(results), local_types, strict=True)]
        return flatten(build(Call(name, tuple(args), dict(kwargs)), regroup(results, flat), emitter.loc))

    def _strategies(
        self, call: Call, values: Sequence[Value], types: Sequence[TensorType | None]
    ) -> list[tuple[str, Strategy]]:
        """The sharding strategy that the operation's placements follow, on each axis."""
        op_strategies = call_strategies(call, types, self.blocks)
        inputs = [from_mlir(v.type).placement_on(self.mesh) for v in values]
        outputs = [None if t is None else t.placement_on(self.mesh) for t in types]
        return [(axis, _matching(op_strategies.strategies, axis, inputs, outputs, call)) for axis, _ in self.mesh]

    def _masked(self, index: int, value: Value, chosen: Sequence[tuple[str, Strategy]], emitter: LocalEmitter) -> Value:
        """The operand with its padding set to the strategies' fills."""
        type_ = from_mlir(value.type)
        new = self.values[value]
        fills = {axis: strategy.fill(index) for axis, strategy in chosen}
        for dim, axes in enumerate(type_.placement_on(self.mesh).dims):
            dim_fills = [fills[axis] for axis in axes if fills[axis] is not None]
            if dim_fills and not is_even(type_.shape[dim], axes, self.mesh):
                chunk = emitter.chunk(type_.shape[dim], axes)
                new = emitter.like("comm.mask", new, list(axes), dim, chunk, type_.shape[dim], dim_fills[0])
        return new

    def _shards(self, strategy: Strategy, values: Sequence[Value], types: Sequence[TensorType | None]) -> Shards:
        """The sharded dim of a strategy with a lowering: of its sharded operand, else of its sharded result."""
        operands = [from_mlir(v.type) for v in values]
        for type_, placement in (
            *zip(operands, strategy.inputs, strict=True),
            *zip(types, strategy.outputs, strict=True),
        ):
            if type_ is not None and isinstance(placement, Shard):
                return self._shards_of(type_, placement.dim, strategy.window)
        raise RuntimeError("a strategy with a lowering shards nothing")

    def _shards_of(self, type_: TensorType, dim: int, window: Window | None) -> Shards:
        placement = type_.placement_on(self.mesh)
        axes = placement.dims[dim]
        chunk = local_type(type_, self.mesh).shape[dim]
        return Shards(dim, axes, chunk, type_.shape[dim], placement.blocks_of(dim), window)

    def _local(self, type_: Type) -> Type:
        return to_mlir(local_type(from_mlir(type_), self.mesh)) if is_tensor(type_) else type_


def _matching(
    candidates: Sequence[Strategy],
    axis: str,
    inputs: Sequence[Placement],
    outputs: Sequence[Placement | None],
    call: Call,
) -> Strategy:
    on_axis = tuple(p.on(axis) for p in inputs)
    for strategy in candidates:
        if strategy.inputs == on_axis and all(
            output is None or output.on(axis) == expected
            for output, expected in zip(outputs, strategy.outputs, strict=True)
        ):
            return strategy
    raise RuntimeError(f'no strategy of "{call.name}" on axis "{axis}" takes {on_axis} to {outputs}')
