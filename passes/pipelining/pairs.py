"""Overlap a forward with the backward of another microbatch in one function: each hides the other's collectives.

Calls that communicate are inlined, and each task keeps its own order. Of the two next
operations the one goes first that could begin first, if computing and communicating were two lanes (`costs/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...costs.communication import LINK_BYTE
from ...costs.compute import traffic
from ...ir.bindings import Value, mlir
from ...ir.collectives import COLLECTIVES
from ...ir.dialects.context import context
from ...ir.module import Module, build_function, callee, entry, finish_function, operations, terminator
from ...ir.operations import flatten, is_packing, regroup
from ...ir.pipelined_module import set_turn
from ..graph import Graph, Node, build_like, replaced
from .op_costs import OpCosts


@dataclass
class OverlappedPairs:
    """The functions of a module that run two tasks at once, each built at its first use."""

    module: Module
    functions: dict[tuple[Node, ...], str | None] = field(default_factory=dict)

    def function(self, forward: Node, backward: Sequence[Node]) -> str | None:
        """The function for a forward and the calls of a backward; None if there is no collective to hide.

        It takes what the forward takes, then what the backward takes of others, and gives the results of both.
        """
        key = (forward, *backward)
        if key not in self.functions:
            communicating = with_collectives(self.module)
            worth = any(node.callee in communicating for node in key)
            self.functions[key] = _Interleaver(self.module, communicating).build(forward, backward) if worth else None
        return self.functions[key]


def external_operands(calls: Sequence[Node]) -> list[Value]:
    """The operands of a sequence of calls that none of them computes, in order."""
    results: set[Value] = set()
    operands: list[Value] = []
    for node in calls:
        operands += [v for v in node.operands if v not in results]
        results.update(node.values)
    return list(dict.fromkeys(operands))


def with_collectives(module: Module) -> set[str]:
    """The functions that communicate, themselves or in what they call."""
    import networkx as nx  # here, since `stretto passes` imports every pass to list it

    calls: nx.DiGraph[str] = nx.DiGraph()
    communicating: set[str] = set()
    for name, function in module.functions().items():
        ops = list(operations(function))
        calls.add_node(name)
        calls.add_edges_from((name, called) for called in map(callee, ops) if called is not None)
        if any(op.operation.name in COLLECTIVES for op in ops):
            communicating.add(name)
    return communicating.union(*(nx.ancestors(calls, name) for name in communicating))


Values = dict[Value, Value]


@dataclass
class _Stream:
    """One of the two tasks: its next operation, with the map from old values to new ones around it."""

    turn: int
    steps: Iterator[tuple[Node, Values]]
    next: tuple[Node, Values] | None = None
    done: float = 0.0
    """The cost of what was emitted."""

    def advance(self) -> None:
        self.next = next(self.steps, None)


class _Interleaver:
    """Builds one function."""

    def __init__(self, module: Module, communicating: set[str]) -> None:
        self.module = module
        self.functions = module.functions()
        self.communicating = communicating
        self.costs = OpCosts(module)
        self.graphs: dict[str, Graph] = {}
        self.ready: dict[Value, float] = {}
        """When each new value is ready."""
        self.free = [0.0, 0.0]
        """When the compute and the comm lane are free."""

    def build(self, forward: Node, backward: Sequence[Node]) -> str:
        """The function's name."""
        name = "_".join(["overlap", *(str(node.callee) for node in (forward, *backward))])
        operands = [external_operands([forward]), external_operands(backward)]
        function = build_function(self.module, name, [v.type for values in operands for v in values])
        arguments = iter(entry(function).arguments)
        outer_values: list[Values] = [{v: next(arguments) for v in values} for values in operands]
        with context(), mlir.InsertionPoint(entry(function)):
            streams = [
                _Stream(0, self._steps([forward], outer_values[0])),
                _Stream(1, self._steps(backward, outer_values[1])),
            ]
            for stream in streams:
                stream.advance()
            while waiting := [stream for stream in streams if stream.next is not None]:
                self._emit(min(waiting, key=lambda stream: (self._start(stream), stream.done)))
        results = [outer_values[0][v] for v in forward.values] + [
            outer_values[1][v] for node in backward for v in node.values
        ]
        finish_function(function, results)
        return name

    def _steps(self, nodes: Sequence[Node], values: Values) -> Iterator[tuple[Node, Values]]:
        """The operations of some nodes in order; calls that communicate are inlined."""
        for node in nodes:
            name = node.callee
            if name is None or name not in self.communicating:
                yield node, values
                continue
            graph = self.graphs.setdefault(name, Graph.of(self.functions[name]))
            operands = [values[v] for v in node.operands]
            inner: Values = dict(zip(entry(graph.function).arguments, operands, strict=True))
            yield from self._steps(graph.nodes, inner)
            results = [inner[v] for v in terminator(graph.function).operands]
            values.update(zip(node.values, results, strict=True))

    def _start(self, stream: _Stream) -> float:
        """When the next operation of a stream could begin."""
        assert stream.next is not None
        node, values = stream.next
        ready = max((self.ready.get(values[v], 0.0) for v in node.operands), default=0.0)
        return max(ready, self.free[_lane(node)])

    def _emit(self, stream: _Stream) -> None:
        assert stream.next is not None
        node, values = stream.next
        lane = _lane(node)
        cost = LINK_BYTE * traffic(node.operands) if lane else self.costs.time(node)
        end = self._start(stream) + cost
        self.free[lane] = end
        stream.done += 0.0 if lane else cost
        new = _copy_marked(node, values, stream.turn)
        self.ready.update(dict.fromkeys(new, end))
        stream.advance()


def _lane(node: Node) -> int:
    return int(node.name in COLLECTIVES)


def _copy_marked(node: Node, values: Values, turn: int) -> list[Value]:
    """Copy a node and mark it with its task's turn; returns the results."""
    types = regroup(node.results, [v.type for v in node.values])
    new = flatten(build_like(node, replaced(values, node.operands), types, node.op.location))
    for value in new[:1]:
        owner = value.owner
        set_turn(owner.operands[0].owner if is_packing(owner) else owner, turn)
    values.update(zip(node.values, new, strict=True))
    return new
