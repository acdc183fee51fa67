"""What every coordinate on the axis of the stages has a part of: work on parameters that are cut over this axis.

An operation is *spread* where it varies, needs a parameter, and takes or gives what differs from coordinate to
coordinate: the logits of a part of the vocabulary, the sum of all parts. So is what stands between such operations, or
behind the last of them in the forward, and needs nothing but what all coordinates have: the logarithm of a sum, the
loss. It is parted by where it stands, into the kinds of tasks that `schedules` knows:

- *E*: before all work of stages in the forward: looking up embeddings.
- *S* and *T*: behind it, and before that of the backward: logits, loss, their gradients. S is what others wait for, T
  what only gradients of weights need; with two meetings S is the forward and T the backward.
- *G*: behind the work of stages in the backward: gradients of embeddings.

What is behind the first collective over the axis in E, S or T is a *meeting*, done between tasks so that other work
hides it; but only where that is no more work than the collectives themselves. Else they stay inside of the task.

Source: Balancing Pipeline Parallelism with Vocabulary Parallelism (arXiv 2411.05288), section 4.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from ...diagnostics import Span, StrettoError
from ...ir.bindings import Value
from ...ir.collectives import ALL_GATHER, ALL_REDUCE, COLLECTIVES
from ...ir.module import Module
from ...ir.types import from_mlir, is_tensor
from ...schedules.schedule import Kind
from ..graph import Graph, Node
from .op_costs import flops
from .time_axis import TimeAxis

_EQUALIZE = (ALL_REDUCE, ALL_GATHER)
_PLACED = ("comm.shard", "comm.offset", "comm.mask", "comm.random")


def is_over(value: Value, axis: str) -> bool:
    """Whether a value's type says that it is cut, or a partial sum, over an axis."""
    return is_tensor(value.type) and any(each == axis for each, _ in from_mlir(value.type).placement)


def meets(node: Node, axis: str) -> bool:
    """Whether a node is a collective over an axis."""
    return node.call is not None and node.name in COLLECTIVES and axis in node.call.args[1]


@dataclass(frozen=True)
class Spread:
    """The spread operations of a main, each with its kind."""

    kinds: dict[Node, Kind]
    met: frozenset[Node]
    """Those that are done between tasks, behind one of their kind."""

    def nodes(self, kind: Kind) -> list[Node]:
        """Those of one kind that its task does, in order."""
        return [node for node, of in self.kinds.items() if of == kind and node not in self.met]

    def meeting(self, kind: Kind) -> list[Node]:
        """Those that are done behind it, in order."""
        return [node for node, of in self.kinds.items() if of == kind and node in self.met]


def analysed(module: Module, axis: str, barriers: int) -> tuple[TimeAxis, Spread]:
    """The classes of main's nodes, and of which of them are spread over an axis.

    Raises E0454 where stages of the forward need what comes of a spread output, or those of the backward what comes of
    a spread embedding's gradient.
    """
    time = TimeAxis(module, Graph.of(module.functions()["main"]))
    kinds = _kinds(time, _spread(time, axis), barriers)
    spread = Spread(kinds, frozenset(_met(time, kinds, axis)))
    time.spread.update(spread.kinds)
    return time, spread


def _spread(time: TimeAxis, axis: str) -> set[Node]:
    """The spread operations."""
    graph = time.graph
    candidates = time.anchored - time.after - {*time.late, *time.early}
    differs = {v for v, _ in graph.arguments if is_over(v, axis)}
    found: set[Node] = set()
    for node in graph.nodes:
        if any(v in differs for v in node.operands) or _asks(node, axis):
            if node in candidates:
                found.add(node)
            if not (meets(node, axis) and node.name in _EQUALIZE):
                differs.update(node.values)
    return found | _between(time, found, candidates, differs) if found else found


def _between(time: TimeAxis, found: set[Node], candidates: Collection[Node], differs: Collection[Value]) -> set[Node]:
    """What needs only what all coordinates have, and is needed by spread work, or by a sum over time or a result."""
    graph = time.graph
    at_hand: set[Node] = set()
    for node in graph.nodes:
        if node in candidates and node not in found:
            makers = [(v, graph.maker.get(v)) for v in node.operands]
            if all(m in found or m in at_hand or (m not in time.anchored and v not in time.owned) for v, m in makers):
                at_hand.add(node)
    returned = {v for v, _ in graph.results}
    ends = {*time.late, *time.after}
    kept: set[Node] = set()
    for node in reversed(graph.nodes):
        users = [user for v in node.values for user in graph.users.get(v, ())]
        if node in at_hand and (
            any(u in found or u in kept or u in ends for u in users) or any(v in returned for v in node.values)
        ):
            kept.add(node)
    return kept


def _asks(node: Node, axis: str) -> bool:
    if node.call is None or node.name not in _PLACED:
        return False
    axes = [a for argument in node.call.args if isinstance(argument, list) for a in argument if isinstance(a, str)]
    return any(axis in each.split(",") for each in axes)


def _kinds(time: TimeAxis, spread: set[Node], barriers: int) -> dict[Node, Kind]:
    graph = time.graph
    forward = [n for n in time.forward if n not in spread]
    backward = [n for n in time.backward if n not in spread]
    behind_forward = graph.dependents(v for n in forward for v in n.values)
    behind_backward = graph.dependents(v for n in backward for v in n.values)
    embedding = spread - behind_forward - time.tangent
    gradient = spread & behind_backward
    output = spread - embedding - gradient
    _refuse(graph, output - time.tangent, forward)
    _refuse(graph, gradient, backward)
    first = _first(time, output, barriers)
    named = {Kind.E: embedding, Kind.S: first, Kind.T: output - first, Kind.G: gradient}
    return {node: kind for node in graph.nodes for kind, nodes in named.items() if node in nodes}


def _first(time: TimeAxis, output: set[Node], barriers: int) -> set[Node]:
    """What of the output's work is S."""
    graph = time.graph
    if barriers > 1:
        return {node for node in output if node not in time.tangent and not node.origin.backward}
    ends = {*time.late, *time.after}
    returned = {v for v, _ in graph.results}
    wanted = set()
    for node in output:
        for value in node.values:
            users = [u for u in graph.users.get(value, ()) if u not in output]
            by_stages = any(u not in ends for u in users)
            if by_stages or (node not in time.tangent and (users or value in returned)):
                wanted.add(value)
    return graph.cone(wanted, within=output)


def _met(time: TimeAxis, kinds: dict[Node, Kind], axis: str) -> set[Node]:
    """What is done at meetings."""
    found: set[Node] = set()
    for kind in (Kind.E, Kind.S, Kind.T):
        behind: set[Node] = set()
        made: set[Value] = set()
        for node, of in kinds.items():
            if of == kind and (meets(node, axis) or any(v in made for v in node.operands)):
                behind.add(node)
                made.update(node.values)
        exchanged = max((_elements(v) for n in behind if meets(n, axis) for v in n.values), default=0)
        own = [node for node in behind if not meets(node, axis)]
        if not any(n.call is None or flops(n) or any(_elements(v) > exchanged for v in n.values) for n in own):
            found |= behind
    return found


def _elements(value: Value) -> int:
    """How many elements a rank holds of a value."""
    return prod(from_mlir(value.type).shape) if is_tensor(value.type) else 0


def _refuse(graph: Graph, spread: set[Node], stages: list[Node]) -> None:
    """Raises E0454 where work of stages depends on spread work that comes behind all of it."""
    needing = graph.dependents(v for n in spread for v in n.values)
    for node in stages:
        if node in needing:
            first = min(spread, key=lambda n: graph.nodes.index(n))
            origin = first.origin
            where = f' of "{origin.module_path}"' if origin.module_path else ""
            raise StrettoError(
                "E0454",
                f"parameters{where} are cut over the axis of the stages, but their work stands between that of stages: "
                f'"{node.origin.module_path}" needs what comes of it',
                span=Span(origin.file, origin.line) if origin.file else None,
                help="cut over this axis only what stands before the first stage or behind the last",
            )
