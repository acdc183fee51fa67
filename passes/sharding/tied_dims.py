"""Tied dims: dims of values that ops require to be sharded together, over a whole module.

In `loss = cross_entropy(x @ w, y)` dim 0 of x, of the product and of y are tied. What a strategy joins
that is taken only on demand is not tied (rings, states). An input that only happens to have as
many rows as the batch is tied to something else, or to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...ir.bindings import Operation, Value
from ...ir.module import Module, callee, entry, operations, terminator
from ...ir.operations import flatten, is_packing, read, results_of
from ...ir.placement import Shard
from ...ir.types import from_mlir, is_tensor
from .rules.ir_calls import call_strategies
from .rules.strategy import Lowering

Dim = tuple[Value, int]

_ON_DEMAND = (Lowering.RING, Lowering.STATE)


class TiedDims:
    """Sets of tied dims: two dims are tied where a sharding strategy shards both, and so are a call's and its callee's.

    A function's dims are those of all its calls together. An op without a sharding rule, or one that mixes the rows of
    its only operand, ties nothing; with `through_mixing` it ties dims 0 of the same extent, for callers of whom such an
    op is refused by name (E0403).
    """

    def __init__(self, module: Module, *, through_mixing: bool = False) -> None:
        self._parents: dict[Dim, Dim] = {}
        self._sizes: dict[Dim, int] = {}
        """By root: the number of dims in its set, where there are several."""
        self._through_mixing = through_mixing
        self._inside: dict[Operation, list[tuple[Value, range]]] = {}
        """By function: its arguments and results, with their dims."""
        functions = module.functions()
        for function in functions.values():
            for op in operations(function):
                name = callee(op)
                if name is not None:
                    self._tie_call(op, functions[name])
                elif not is_packing(op):
                    self._tie_operation(op)

    def are_tied(self, one: Value, other: Value, dim: int = 0) -> bool:
        """Whether the same dim of two values is tied."""
        return self.dims_are_tied((one, dim), (other, dim))

    def dims_are_tied(self, one: Dim, other: Dim) -> bool:
        """Whether a dim of one value is tied to a dim of another."""
        return self._root(one) == self._root(other)

    def _tie_operation(self, op: Operation) -> None:
        call = read(op)
        if call is None:
            return
        values, results = call.values(), flatten(results_of(op))
        types = [from_mlir(r.type) if is_tensor(r.type) else None for r in results]
        found = call_strategies(call, types).strategies
        strategies = [each for each in found if each.lowering not in _ON_DEMAND]
        shards = any(isinstance(p, Shard) for strategy in strategies for p in strategy.inputs)
        if self._through_mixing and (not shards or len(values) == 1):
            self._tie_rows((*values, *results))
        for strategy in strategies:
            placed = zip((*values, *results), (*strategy.inputs, *strategy.outputs), strict=True)
            self._tie((value, placement.dim) for value, placement in placed if isinstance(placement, Shard))

    def _tie_rows(self, values: Iterable[Value]) -> None:
        by_extent: dict[int, list[Dim]] = {}
        for value in values:
            shape = from_mlir(value.type).shape if is_tensor(value.type) else ()
            if shape:
                by_extent.setdefault(shape[0], []).append((value, 0))
        for dims in by_extent.values():
            self._tie(dims)

    def _tie_call(self, op: Operation, function: Operation) -> None:
        inside = self._inside.get(function)
        if inside is None:
            values = (*entry(function).arguments, *terminator(function).operands)
            inside = [(v, range(len(from_mlir(v.type).shape) if is_tensor(v.type) else 0)) for v in values]
            self._inside[function] = inside
        for outer, (inner, dims) in zip((*op.operands, *op.results), inside, strict=True):
            for dim in dims:
                self._tie([(inner, dim), (outer, dim)])

    def _tie(self, dims: Iterable[Dim]) -> None:
        roots = list(dict.fromkeys(self._root(dim) for dim in dims))
        if len(roots) > 1:  # the largest set's root stays, so that no chain of parents gets long
            largest = max(roots, key=lambda root: self._sizes.get(root, 1))
            self._sizes[largest] = sum(self._sizes.get(root, 1) for root in roots)
            self._parents.update(dict.fromkeys((root for root in roots if root is not largest), largest))

    def _root(self, dim: Dim) -> Dim:
        while (parent := self._parents.get(dim)) is not None:
            dim = parent
        return dim
