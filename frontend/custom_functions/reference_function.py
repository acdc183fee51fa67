"""A custom autograd function in the reference: its forward and its backwards as lists of instructions.

All share one frame. Its first slots are the operands, so that a backward finds there what the forward has computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from ..graph.instructions import Instructions, Json, add_frees
from ..graph.random_op import RANDOM
from .custom_function import CustomFunction

CUSTOM_FUNCTION = "stretto.custom_function"
"""The op that calls one: its index among the reference's functions, then its operands."""


def write_function(function: CustomFunction) -> tuple[Json, bool]:
    """The function as JSON, and whether its last operand is the RNG state."""
    graphs = [function.forward_graph.graph, *(backward.graph.graph for backward in function.backwards)]
    draws = any(graph.find_nodes(op="call_function", target=RANDOM) for graph in graphs)
    operands = graphs[0].find_nodes(op="placeholder")
    writer = Instructions(len(operands) + draws)
    writer.random_state = len(operands) if draws else None
    writer.slots.update({node: slot for slot, node in enumerate(operands)})
    code = _code(writer, graphs[0])
    results, saved = _returned(graphs[0])
    saved_slots = [writer.slots[node] for node in saved]
    outputs = [writer.slots[node] for node in results]
    add_frees(code, {*range(len(operands) + draws), *outputs, *saved_slots})
    backwards = [_backward(writer, each.graph.graph, saved_slots, each.present) for each in function.backwards]
    signature = function.signature
    written = {
        "name": signature.name,
        "slots": writer.count,
        "operands": len(operands) + draws,
        "inputs": signature.inputs,
        "code": code,
        "outputs": outputs,
        "differentiable": list(signature.differentiable),
        "backwards": backwards,
    }
    return written, draws


def _backward(writer: Instructions, graph: fx.Graph, saved: Sequence[int], present: Sequence[bool]) -> Json:
    placeholders = graph.find_nodes(op="placeholder")
    writer.slots.update(zip(placeholders, saved, strict=False))
    given = iter([writer.fresh(node) for node in placeholders[len(saved) :]])
    code = _code(writer, graph)
    gradients = [None if node is None else writer.slots[node] for node in _returned(graph)]
    return {"tangents": [next(given) if each else None for each in present], "code": code, "gradients": gradients}


def _code(writer: Instructions, graph: fx.Graph) -> list[Json]:
    return [instruction for node in graph.nodes for instruction in writer.of_node(node)]


def _returned(graph: fx.Graph) -> Any:
    return graph.output_node().args[0]
