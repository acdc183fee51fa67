"""Rough durations of a model's forwards, gradients and transfers, for schedules that search.

Only the ratios of these times matter. They come from `costs/`, in bytes moved, and are given in the unit in which
a whole microbatch takes 3 on a rank, which is that of f = b = w = 1.
"""

from __future__ import annotations

from ...costs.communication import LINK_BYTE
from ...ir.bindings import Value
from ...ir.module import Module, terminator
from ...schedules.costs import Costs
from ...schedules.schedule import Kind
from ..graph import Graph, Node
from .backward_split import input_gradients
from .microbatch_analysis import MicrobatchAnalysis
from .op_costs import OpCosts
from .shared_work import SharedWork
from .stages import crossing_bytes

_DIGITS = 2


def estimated(
    module: Module, analysis: MicrobatchAnalysis, shared_work: SharedWork, ranks: int, costs: OpCosts
) -> Costs:
    """The durations of a rank's share of a microbatch, and of its parts of shared work."""
    forward = sum(costs.time(node) for node in analysis.forward)
    whole = sum(costs.time(node) for node in analysis.backward)
    weights = _weights(module, analysis, costs)
    inner = sorted(crossing_bytes(analysis, analysis.forward)[1:])
    crossing = inner[len(inner) // 2] if inner else 0.0
    unit = (forward + whole) / ranks / 3 or 1.0
    times = (forward / ranks, (whole - weights) / ranks, weights / ranks, crossing * LINK_BYTE)
    shared = [sum(costs.time(n) for n in shared_work.nodes(kind)) for kind in (Kind.S, Kind.T, Kind.E, Kind.G)]
    f, b, w, c, s, t, e, g = (round(each / unit, _DIGITS) for each in (*times, *shared))
    return Costs(f, b, w, c, s=s, t=t, e=e, g=g)


def _weights(module: Module, analysis: MicrobatchAnalysis, costs: OpCosts) -> float:
    """The cost of operations that only weight gradients need."""
    needed = input_gradients(analysis, analysis.backward)
    total = 0.0
    for node in analysis.backward:
        if node not in needed.nodes:
            total += costs.time(node)
        elif node.callee is not None:
            total += _inside(module, node, {v for v in node.values if v in needed.values}, costs)
    return total


def _inside(module: Module, node: Node, wanted: set[Value], costs: OpCosts) -> float:
    """The cost of a called function's operations that the wanted results do not need."""
    function = module.functions()[str(node.callee)]
    graph = Graph.of(function)
    results = [
        inner for outer, inner in zip(node.values, terminator(function).operands, strict=True) if outer in wanted
    ]
    cone = graph.cone(results)
    return sum(costs.time(each) for each in graph.nodes if each not in cone)
