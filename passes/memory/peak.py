"""An estimate of the most bytes that are alive on a rank during a step, from the module: what `recompute auto` fits.

Memory is freed after the last operation that reads it, in the order in which a program runs: first the forward. What a
function allocates counts at its calls. Arguments of main count throughout, as do the results from when they are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...costs.compute import bytes_of
from ...ir.bindings import Operation, Value
from ...ir.module import Module, entry, terminator
from ..graph import Graph, Node
from .kept import Memories, Memory, behind


def peak_bytes(module: Module) -> int:
    """The most bytes alive at once."""
    functions = module.functions()
    memories = Memories(functions)
    graph = Graph.of(functions["main"])
    backward = behind(graph)
    order = [node for node in graph.nodes if node not in backward] + [n for n in graph.nodes if n in backward]
    inside: dict[str, int] = {}
    for name in dict.fromkeys(node.callee for node in order if node.callee is not None):
        callee = Graph.of(functions[name])
        inside[name] = _walk(callee.function, callee.nodes, memories.of(name), memories, {})
    arguments = sum(bytes_of(argument) for argument in entry(graph.function).arguments)
    return arguments + _walk(graph.function, order, memories.of("main"), memories, inside)


def _walk(
    function: Operation,
    nodes: Sequence[Node],
    found: dict[Value, Memory],
    memories: Memories,
    inside: dict[str, int],
) -> int:
    """The most that is alive of what the nodes allocate, in a function that returns its results at its end."""
    last: dict[Memory, int] = {}
    for index, node in enumerate(nodes):
        last.update({found[v]: index for v in (*node.operands, *node.values)})
    last.update({found[v]: len(nodes) for v in terminator(function).operands})
    ends: dict[int, list[Memory]] = {}
    for memory, index in last.items():
        ends.setdefault(index, []).append(memory)
    alive, most = 0, 0
    seen: set[Memory] = set()
    for index, node in enumerate(nodes):
        new = {found[v] for v in node.values} - seen
        seen |= new
        made = _bytes(new, memories)
        most = max(most, alive + max(made, inside.get(str(node.callee), 0)))
        alive += made - _bytes([m for m in ends.get(index, ()) if m in seen], memories)
    return most


def _bytes(found: Iterable[Memory], memories: Memories) -> int:
    return sum(memories.bytes.get(memory, 0) for memory in found)
