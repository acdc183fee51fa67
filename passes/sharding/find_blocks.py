"""Cut the columns of a fused projection inside each of its blocks, so that each of them is cut as one of its own.

Before   %y = nn.linear(%x, %w)               %w: tensor<96x32xf32, {tp = "shard(0)"}>
         %q, %k, %v = aten.split(%y, 32, -1)
After    %w: tensor<96x32xf32, {comm.blocks = [array<i64: 0, 32, 32, 32>], tp = "shard(0)"}>

A parameter that the plan shards is followed forward, dim by dim, through the operations whose sharding strategies keep
the dim. Where a split, slices, or a view whose first part is taken apart cut it, they cut it at the ends of blocks: the
query, key and value of an attention, the gate and the input of an MLP. A rank then gets a chunk of each block. The
ranks must divide every block; else the dim is cut as a whole, and what splits it gathers.

Needs: level `aten`, placements on main's arguments.   Keeps: values.
Cost: none; a gather of the projection's output less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import ClassVar

from ...ir.attributes import to_attribute
from ...ir.bindings import Operation, Value
from ...ir.dim_groups import dim_groups
from ...ir.locations import Origin, from_location
from ...ir.module import Level, Module, Record, argument_records, callee, entry, refresh_type
from ...ir.operations import Call, flatten, is_packing, read, results_of
from ...ir.placement import Mesh, Shard, axes_size
from ...ir.types import TensorType, from_mlir, is_tensor, to_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..layers.argument_types import pass_types_on
from ..rewriting import users
from .rules.blocks import Blocks, slice_bounds
from .rules.builders import dim
from .rules.ir_calls import BLOCKS, bound_call, call_strategies

_REACH = 64
"""How many dims of values a parameter is followed through; projections are taken apart near by."""
_MOST = 64
"""The most blocks of a dim."""
_NUMBER = re.compile(r"[0-9]+")
"""The number of a layer in a name. Layers are taken to be alike, so that time goes by distinct layer; where one is not,
its blocks are cut otherwise than it needs, at the cost of a gather."""
_VIEWS = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")


@dataclass(frozen=True)
class FindBlocks(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "find-blocks"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})

    def run(self, module: Module) -> Report:
        main = module.functions()["main"]
        remarks = CountedRemarks(self.name)
        known: dict[Blocks, None] = {}
        by_layer: dict[tuple[str, tuple[int, ...], int], Blocks] = {}
        for argument, record in zip(entry(main).arguments, argument_records(main), strict=True):
            for d, axes in _followed_dims(argument, record, module.mesh):
                layer = _NUMBER.sub("*", str(record.get("name"))), from_mlir(argument.type).shape, d
                if layer not in by_layer:
                    by_layer[layer] = _blocks(module, argument, d)
                blocks = by_layer[layer]
                if len(blocks) < 2:
                    continue
                origin = _place_of_use(module, argument)
                ranks, extents = axes_size(module.mesh, axes), ", ".join(map(str, blocks))
                if any(block % ranks for block in blocks):
                    over = ", ".join(axes)
                    remarks.missed(f"{ranks} ranks over {over} do not divide each of the blocks of {extents}", origin)
                    continue
                type_ = from_mlir(argument.type)
                placement = type_.placement_on(module.mesh).with_blocks(d, blocks)
                argument.set_type(to_mlir(type_.placed(placement, module.mesh)))
                remarks.applied(f"parameter cut inside each of its blocks of {extents}", origin)
                known[blocks] = None
        if known:
            refresh_type(main)
            pass_types_on(module)
            module.operation.attributes[BLOCKS] = to_attribute([list(blocks) for blocks in known])
        return Report(len(known), remarks.remarks())


def _followed_dims(argument: Value, record: Record, mesh: Mesh) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The dims of a parameter that it is computed with a part of, and their axes; none that `store` cuts further."""
    if record.get("kind") != "parameter":
        return
    for d, axes in enumerate(from_mlir(argument.type).placement_on(mesh).dims):
        if axes and not {*axes} & {*record.get("stored", [])}:
            yield d, axes


def _place_of_use(module: Module, value: Value) -> Origin:
    """The place of an operation that uses a value, inside the functions that are called with it."""
    user = users(value)[0]
    name = callee(user)
    if name is None:
        return from_location(user.location)
    position = list(user.operands).index(value)
    return _place_of_use(module, entry(module.functions()[name]).arguments[position])


@dataclass(frozen=True)
class _Followed:
    """A dim of a value, of which each index stands for `unit` elements of the parameter's dim, in order."""

    value: Value
    dim: int
    unit: int
    call: Operation | None = None
    """The call of a layer inside whose function the value is."""


def _blocks(module: Module, parameter: Value, d: int) -> Blocks:
    """The extents of the blocks of a parameter's dim; one where nothing takes it apart, none where too much does."""
    start = _Followed(parameter, d, 1)
    waiting, seen = [start], {(parameter, d)}
    functions = module.functions()
    ends = {0, from_mlir(parameter.type).shape[d]}
    while waiting and len(seen) < _REACH:
        followed = waiting.pop(0)
        for op in users(followed.value):
            call = None if is_packing(op) else read(op)
            if call is not None:
                results = flatten(results_of(op))
                ends.update(end * followed.unit for end in _ends(call, results, followed))
                further = _reached(call, results, followed)
            else:
                further = _across(op, followed, functions)
            for reached in further:
                if (reached.value, reached.dim) not in seen:
                    seen.add((reached.value, reached.dim))
                    waiting.append(reached)
    blocks = tuple(end - begin for begin, end in pairwise(sorted(ends)))
    return blocks if len(blocks) <= _MOST else ()


def _across(op: Operation, followed: _Followed, functions: Mapping[str, Operation]) -> Iterator[_Followed]:
    """The same dim inside the function that an operation calls, or behind the call whose function it ends."""
    name = callee(op)
    inner, outer, call = (entry(functions[name]).arguments, op.operands, op) if name else ((), (), None)
    if op.operation.name == "func.return" and followed.call is not None:
        inner, outer = followed.call.results, op.operands
    for position, value in enumerate(outer):
        if value == followed.value:
            yield replace(followed, value=inner[position], call=call)


def _ends(call: Call, results: list[Value], followed: _Followed) -> Iterator[int]:
    """Where an operation cuts the followed dim, in its indices."""
    bound = bound_call(call, _types(results))
    if bound is None or not isinstance(bound.operands.get("dim"), int):
        return
    shape = from_mlir(followed.value.type).shape
    if dim(bound.integer("dim"), len(shape)) != followed.dim:
        return
    extent = shape[followed.dim]
    match call.name:
        case "aten.split.Tensor":
            yield from range(0, extent, bound.integer("split_size"))
        case "aten.split_with_sizes.default":
            yield from accumulate(bound.integers("split_sizes"))
        case "aten.slice.Tensor":
            yield from slice_bounds(bound, extent) or ()
        case "aten.unbind.int":
            yield from range(extent)
        case "aten.select.int":
            index = dim(bound.integer("index"), extent)
            yield from (index, index + 1)


def _reached(call: Call, results: list[Value], followed: _Followed) -> Iterator[_Followed]:
    """The dims of results that an operation moves the followed dim to, whole and in order."""
    shape = from_mlir(followed.value.type).shape
    extent = shape[followed.dim]
    if call.name in _VIEWS:
        after = from_mlir(results[0].type).shape
        for before_dims, after_dims in dim_groups(shape, after) if 0 not in shape else ():
            if before_dims == (followed.dim,):
                unit = followed.unit * extent // after[after_dims[0]]
                yield replace(followed, value=results[0], dim=after_dims[0], unit=unit)
        return
    positions = [i for i, value in enumerate(call.values()) if value == followed.value]
    for candidate in call_strategies(call, _types(results)).strategies:
        if candidate.lowering is None and any(candidate.inputs[i] == Shard(followed.dim) for i in positions):
            for result, placement in zip(results, candidate.outputs, strict=False):
                if not is_tensor(result.type) or not isinstance(placement, Shard):
                    continue
                if from_mlir(result.type).shape[placement.dim] == extent:
                    yield replace(followed, value=result, dim=placement.dim)


def _types(results: Sequence[Value]) -> list[TensorType | None]:
    """Of the results of an operation; none of one that it leaves out."""
    return [from_mlir(result.type) if is_tensor(result.type) else None for result in results]
