"""How an operation runs on a nanobatch: as its sharding strategies say, since a nanobatch is a shard in time.

Reshapes may merge the dim that is cut with others; collectives pass every dim but those that they split or join.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ...ir.bindings import Value
from ...ir.collectives import COLLECTIVES
from ...ir.dialects.schemas import definitions
from ...ir.dim_groups import dim_groups
from ...ir.placement import Mesh, Partial, Reduce, Shard
from ...ir.types import TensorType, element_bytes, from_mlir, is_tensor
from ..graph import Node
from ..partition.attention import OFFSET_ARGUMENTS
from ..sharding.rules import Lowering, Strategy
from ..sharding.rules.ir_calls import call_strategies
from .cuts import Cut, Placed, is_even_on

_RESHAPES = ("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")
_OF_ONE_DIM = {"comm.shard": "dim", "comm.mask": "dim"}
"""What a rank does to one dim, named by this argument, without communication."""
_SLICE, _CAT = "aten.slice.Tensor", "aten.cat.default"


@dataclass(frozen=True)
class Way:
    """How an operation runs on a nanobatch."""

    inputs: tuple[Placed, ...]
    outputs: tuple[Placed, ...]
    extent: int
    """Of the dim that is cut."""
    counts_queries: bool = False
    """Whether the operation is causal attention of a part of the queries, which has to know where these begin."""


Cuts = Mapping[Value, Cut]
"""By value of a function: how it would be cut."""


def way_of(node: Node, cuts: Cuts, parts: int, mesh: Mesh) -> Way | None:
    """How a node runs on one of so many parts of its operands; None if it needs them whole, or none of them is cut."""
    first = next((value for value in node.operands if value in cuts), None)
    if first is None or node.call is None or not definitions()[node.name].pure:
        return None
    if node.name in _RESHAPES:
        return _reshaped(node, cuts[first], mesh)
    if node.name.startswith("comm."):
        return _communicated(node, cuts[first], mesh)
    ways = list(_listed(node, cuts, cuts[first], parts, mesh))
    return min(ways, key=lambda way: _joined_bytes(node, way, cuts), default=None)


def kept_cut(node: Node, cuts: Cuts) -> Cut | None:
    """How the result is cut of what takes a part of the dim that is cut, joins parts of it, or moves it over ranks.

    Such an operation runs once. Its result may have another extent, and what is computed of that then runs once too.
    """
    cut = cuts.get(node.operands[0]) if node.operands else None
    if cut is None or node.call is None or (cut.before, cut.after) != (1, 1) or len(node.values) != 1:
        return None
    moves = node.name in (_SLICE, _CAT, *_OF_ONE_DIM) or node.name in COLLECTIVES
    rank = len(from_mlir(node.values[0].type).shape)
    return cut if moves and cut.dim < rank and all(cuts.get(v) == cut for v in node.operands) else None


def _reshaped(node: Node, cut: Cut, mesh: Mesh) -> Way | None:
    before, after = (from_mlir(v.type) for v in (node.operands[0], node.values[0]))
    for old, new in dim_groups(before.shape, after.shape):
        if cut.dim not in old:
            continue
        place = old.index(cut.dim)
        outer = prod(before.shape[d] for d in old[:place]) * cut.before
        inner = prod(before.shape[d] for d in old[place + 1 :]) * cut.after
        extent = cut.extent(before)
        for index, dim in enumerate(new):
            ahead, behind = (prod(after.shape[d] for d in dims) for dims in (new[:index], new[index + 1 :]))
            if outer % ahead == 0 and inner % behind == 0:
                found = Cut(dim, outer // ahead, inner // behind)
                if found.extent(after) == extent and is_even_on(after, dim, mesh):
                    return Way((cut,), (found,), extent)
    return None


def _communicated(node: Node, cut: Cut, mesh: Mesh) -> Way | None:
    """Collectives of one tensor, and what a rank does to one dim: they pass the other dims."""
    assert node.call is not None
    if len(node.operands) != 1 or len(node.values) != 1:
        return None
    found = COLLECTIVES.get(node.name)
    if found is not None and not found.coalesces and not found.bound:
        given = dict(zip(found.arguments, node.call.args[1:], strict=False))
        dims = {given.get(found.split), given.get(found.joined)}
    elif node.name in _OF_ONE_DIM:
        names = [argument.name for argument in definitions()[node.name].arguments]
        dims = {node.call.args[names.index(_OF_ONE_DIM[node.name])]}
    else:
        return None
    type_ = from_mlir(node.values[0].type)
    return None if cut.dim in dims or not is_even_on(type_, cut.dim, mesh) else Way((cut,), (cut,), cut.extent(type_))


def _listed(node: Node, cuts: Cuts, first: Cut, parts: int, mesh: Mesh) -> Iterator[Way]:
    """The ways by an operation's sharding strategies that take a part of a value that is cut."""
    assert node.call is not None
    types = [from_mlir(v.type) if is_tensor(v.type) else None for v in node.values]
    extent = next(cuts[v].extent(from_mlir(v.type)) for v in node.operands if v in cuts)
    for strategy in call_strategies(node.call, types).strategies:
        counts_queries = strategy.lowering is Lowering.OFFSET and node.name in OFFSET_ARGUMENTS
        if strategy.lowering is not None and not counts_queries:
            continue
        inputs = tuple(_placed(p, first) for p in strategy.inputs)
        outputs = tuple(_placed(p, first) for p in strategy.outputs)
        if counts_queries and (first.before, first.after) != (1, 1):
            continue
        if (
            _is_legal(strategy, extent, parts)
            and any(cuts.get(v) == p and p is not None for v, p in zip(node.operands, inputs, strict=True))
            and all(_takes(v, p, cuts, extent, mesh) for v, p in zip(node.operands, inputs, strict=True))
            and all(_gives(t, p, extent, mesh) for t, p in zip(types, outputs, strict=True))
        ):
            yield Way(inputs, outputs, extent, counts_queries)


def _is_legal(strategy: Strategy, extent: int, parts: int) -> bool:
    """Whether the strategy holds for the parts; one that ties dims, or that some dim has to divide, for equal ones."""
    conditions = bool(strategy.ties or strategy.divided)
    return not conditions or (extent % parts == 0 and strategy.legal(parts))


def _takes(value: Value, placed: Placed, cuts: Cuts, extent: int, mesh: Mesh) -> bool:
    if isinstance(placed, Partial):
        return False
    if placed is None:
        return True
    type_ = from_mlir(value.type)
    return cuts.get(value, placed) == placed and _is_cut(type_, placed, extent, mesh)


def _gives(type_: TensorType | None, placed: Placed, extent: int, mesh: Mesh) -> bool:
    if type_ is None:
        return True
    if isinstance(placed, Cut):
        return _is_cut(type_, placed, extent, mesh)
    return isinstance(placed, Partial) and placed.reduce is Reduce.SUM


def _is_cut(type_: TensorType, cut: Cut, extent: int, mesh: Mesh) -> bool:
    return cut.extent(type_) == extent and is_even_on(type_, cut.dim, mesh)


def _joined_bytes(node: Node, way: Way, cuts: Cuts) -> tuple[int, int]:
    """By the bytes of operands that are cut, but must be whole; then by the dim of the result."""
    whole = (from_mlir(v.type) for v, p in zip(node.operands, way.inputs, strict=True) if v in cuts and p is None)
    dims: Sequence[int] = [placed.dim for placed in way.outputs if isinstance(placed, Cut)]
    return sum(element_bytes(type_) for type_ in whole), min(dims, default=0)


def _placed(placement: object, first: Cut) -> Placed:
    if isinstance(placement, Shard):
        return Cut(placement.dim, first.before, first.after)
    return placement if isinstance(placement, Partial) else None
