"""Tied dims: dims of values that ops require to be sharded together, over a whole module.

In `loss = cross_entropy(x @ w, y)` dim 0 of x, of the product and of y are tied. An input that only happens to have as
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

_Dim = tuple[Value, int]


class TiedDims:
    """Sets of tied dims: two dims are tied where a sharding strategy shards both, and so are a call's and its callee's.

    An op without a sharding rule ties nothing. A function's dims are those of all its calls together.
    """

    def __init__(self, module: Module) -> None:
        self._parents: dict[_Dim, _Dim] = {}
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
        return self._root((one, dim)) == self._root((other, dim))

    def _tie_operation(self, op: Operation) -> None:
        call = read(op)
        if call is None:
            return
        values, results = call.values(), flatten(results_of(op))
        types = [from_mlir(r.type) if is_tensor(r.type) else None for r in results]
        for strategy in call_strategies(call, types).strategies:
            placed = zip((*values, *results), (*strategy.inputs, *strategy.outputs), strict=True)
            self._tie((value, placement.dim) for value, placement in placed if isinstance(placement, Shard))

    def _tie_call(self, op: Operation, function: Operation) -> None:
        inside = (*entry(function).arguments, *terminator(function).operands)
        for outer, inner in zip((*op.operands, *op.results), inside, strict=True):
            if is_tensor(outer.type):
                for dim in range(len(from_mlir(outer.type).shape)):
                    self._tie([(outer, dim), (inner, dim)])

    def _tie(self, dims: Iterable[_Dim]) -> None:
        roots = [self._root(dim) for dim in dims]
        self._parents.update(dict.fromkeys(roots[1:], roots[0]) if roots else {})
        if roots:
            self._parents[roots[0]] = roots[0]

    def _root(self, dim: _Dim) -> _Dim:
        while (parent := self._parents.get(dim, dim)) != dim:
            self._parents[dim] = self._parents.get(parent, parent)
            dim = parent
        return dim
