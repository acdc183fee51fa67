"""Shared work: operations on parameters that the pipeline axis shards; every rank of the pipeline runs its part.

An operation is *shared* if it varies over microbatches, needs a parameter, and has an operand or result that differs
between ranks of the pipeline: the logits of a chunk of the vocabulary, their partial sum. Operations between shared
ones, or behind the last of them in the forward, are shared too if they need only values that all ranks have: the
logarithm of a sum, the loss. By position they belong to one of the kinds of shared tasks of `schedules`:

- *E*: before all stages in the forward: embedding lookups.
- *S* and *T*: between the stages' forward and backward: logits, loss, their gradients. S is what the backward waits
  for, T is what only weight gradients need; with two barriers S is the forward and T the backward.
- *G*: behind all stages in the backward: gradients of embeddings.

The operations from the first collective over the axis on in E, S or T form a *barrier*: it runs between tasks, so that
other work hides it. That holds only if they are no more work than the collectives; else they stay inside the task.

Source: Balancing Pipeline Parallelism with Vocabulary Parallelism (arXiv 2411.05288), section 4.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from ...costs.compute import flops
from ...diagnostics import Span, StrettoError
from ...ir.bindings import Value
from ...ir.collectives import ALL_GATHER, ALL_REDUCE, COLLECTIVES
from ...ir.module import Module
from ...ir.types import from_mlir, is_tensor
from ...schedules.schedule import Kind
from ..graph import Graph, Node
from .microbatch_analysis import MicrobatchAnalysis

_EQUALIZE = (ALL_REDUCE, ALL_GATHER)
_PLACED = ("comm.shard", "comm.offset", "comm.mask", "comm.random")


def varies_over(value: Value, axis: str) -> bool:
    """Whether an axis shards a value, or the value is partial over it."""
    return is_tensor(value.type) and any(placed_axis == axis for placed_axis, _ in from_mlir(value.type).placement)


def is_collective_over(node: Node, axis: str) -> bool:
    """Whether a node is a collective over an axis."""
    return node.call is not None and node.name in COLLECTIVES and axis in node.call.args[1]


@dataclass(frozen=True)
class SharedWork:
    """The shared operations of main, each with its kind."""

    kinds: dict[Node, Kind]
    in_barriers: frozenset[Node]
    """Those in the barrier after the task of their kind."""

    def nodes(self, kind: Kind) -> list[Node]:
        """The operations inside the task of a kind, in order."""
        return [node for node, node_kind in self.kinds.items() if node_kind == kind and node not in self.in_barriers]

    def barrier(self, kind: Kind) -> list[Node]:
        """The operations of the barrier after it, in order."""
        return [node for node, node_kind in self.kinds.items() if node_kind == kind and node in self.in_barriers]


def analyse(module: Module, axis: str, barriers: int) -> tuple[MicrobatchAnalysis, SharedWork]:
    """Analyse main, shared work over the pipeline axis included.

    Raises E0454 if stages of the forward need results of a shared output layer, or those of the backward need results
    of a shared embedding's gradient.
    """
    analysis = MicrobatchAnalysis(module, Graph.of(module.functions()["main"]))
    kinds = _kinds(analysis, _shared(analysis, axis), barriers)
    shared = SharedWork(kinds, frozenset(_in_barriers(analysis, kinds, axis)))
    analysis.shared_work.update(shared.kinds)
    return analysis, shared


def _shared(analysis: MicrobatchAnalysis, axis: str) -> set[Node]:
    """The shared operations."""
    graph = analysis.graph
    candidates = analysis.anchored - analysis.after - {*analysis.late, *analysis.early}
    differs = {v for v, _ in graph.arguments if varies_over(v, axis)}
    shared: set[Node] = set()
    for node in graph.nodes:
        if any(v in differs for v in node.operands) or _reads_coordinate(node, axis):
            if node in candidates:
                shared.add(node)
            if not (is_collective_over(node, axis) and node.name in _EQUALIZE):
                differs.update(node.values)
    return shared | _between(analysis, shared, candidates, differs) if shared else shared


def _between(
    analysis: MicrobatchAnalysis, shared: set[Node], candidates: Collection[Node], differs: Collection[Value]
) -> set[Node]:
    """Operations that need only values of all ranks, and that shared work, sums over microbatches or results need."""
    graph = analysis.graph
    available: set[Node] = set()
    for node in graph.nodes:
        if node in candidates and node not in shared:
            makers = [(v, graph.maker.get(v)) for v in node.operands]
            if all(
                m in shared or m in available or (m not in analysis.anchored and v not in analysis.owned)
                for v, m in makers
            ):
                available.add(node)
    returned = {v for v, _ in graph.results}
    after_microbatches = {*analysis.late, *analysis.after}
    between: set[Node] = set()
    for node in reversed(graph.nodes):
        users = [user for v in node.values for user in graph.users.get(v, ())]
        if node in available and (
            any(u in shared or u in between or u in after_microbatches for u in users)
            or any(v in returned for v in node.values)
        ):
            between.add(node)
    return between


def _reads_coordinate(node: Node, axis: str) -> bool:
    if node.call is None or node.name not in _PLACED:
        return False
    axes = [a for argument in node.call.args if isinstance(argument, list) for a in argument if isinstance(a, str)]
    return any(axis in dim_axes.split(",") for dim_axes in axes)


def _kinds(analysis: MicrobatchAnalysis, shared: set[Node], barriers: int) -> dict[Node, Kind]:
    graph = analysis.graph
    forward = [n for n in analysis.forward if n not in shared]
    backward = [n for n in analysis.backward if n not in shared]
    behind_forward = graph.dependents(v for n in forward for v in n.values)
    behind_backward = graph.dependents(v for n in backward for v in n.values)
    embedding = shared - behind_forward - analysis.tangent
    gradient = shared & behind_backward
    output = shared - embedding - gradient
    _refuse(graph, output - analysis.tangent, forward)
    _refuse(graph, gradient, backward)
    first = _first(analysis, output, barriers)
    nodes_by_kind = {Kind.E: embedding, Kind.S: first, Kind.T: output - first, Kind.G: gradient}
    return {node: kind for node in graph.nodes for kind, nodes in nodes_by_kind.items() if node in nodes}


def _first(analysis: MicrobatchAnalysis, output: set[Node], barriers: int) -> set[Node]:
    """The operations of the output layer that are in S."""
    graph = analysis.graph
    if barriers > 1:
        return {node for node in output if node not in analysis.tangent and not node.origin.backward}
    after_microbatches = {*analysis.late, *analysis.after}
    returned = {v for v, _ in graph.results}
    needed = set()
    for node in output:
        for value in node.values:
            users = [u for u in graph.users.get(value, ()) if u not in output]
            by_stages = any(u not in after_microbatches for u in users)
            if by_stages or (node not in analysis.tangent and (users or value in returned)):
                needed.add(value)
    return graph.cone(needed, within=output)


def _in_barriers(analysis: MicrobatchAnalysis, kinds: dict[Node, Kind], axis: str) -> set[Node]:
    """The operations of barriers."""
    found: set[Node] = set()
    for kind in (Kind.E, Kind.S, Kind.T):
        behind: set[Node] = set()
        values: set[Value] = set()
        for node, node_kind in kinds.items():
            if node_kind == kind and (is_collective_over(node, axis) or any(v in values for v in node.operands)):
                behind.add(node)
                values.update(node.values)
        exchanged = max((_elements(v) for n in behind if is_collective_over(n, axis) for v in n.values), default=0)
        own = [node for node in behind if not is_collective_over(node, axis)]
        larger = any(_elements(v) > exchanged for n in own for v in n.values)
        if not larger and not any(n.call is None or flops(n.call, n.values) for n in own):
            found |= behind
    return found


def _elements(value: Value) -> int:
    """The number of a value's local elements."""
    return prod(from_mlir(value.type).shape) if is_tensor(value.type) else 0


def _refuse(graph: Graph, shared: set[Node], stages: list[Node]) -> None:
    """Raises E0454 if work of stages depends on shared work that belongs behind all of it."""
    dependents = graph.dependents(v for n in shared for v in n.values)
    for node in stages:
        if node in dependents:
            first = min(shared, key=lambda n: graph.nodes.index(n))
            origin = first.origin
            where = f' of "{origin.module_path}"' if origin.module_path else ""
            raise StrettoError(
                "E0454",
                f"parameters{where} are sharded over the pipeline axis, but their work stands between that of stages: "
                f'"{node.origin.module_path}" needs what comes of it',
                span=Span(origin.file, origin.line) if origin.file else None,
                help="cut over this axis only what stands before the first stage or behind the last",
            )
