"""The bytes that are alive on a rank while a module runs, collectives under way included: by the rules of the prover.

Memory is freed after the last operation that reads it, in the order in which a program runs. A collective takes the
memory of its result when it starts, and keeps its operand until the wait. A call frees what it alone is given as soon
as the function has read it. Arguments of an entry are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...costs.compute import bytes_of
from ...ir.bindings import Operation, Value
from ...ir.collectives import STARTS, WAIT
from ...ir.module import Module, entry, terminator
from ..graph import Node
from ..memory.kept import Memories, Memory, behind

Path = tuple[tuple[str, int], ...]
"""Where a peak is: in each function, from the entry inwards, the number of the step."""


@dataclass(frozen=True)
class Peak:
    """The most bytes alive at once, and where."""

    bytes: int
    path: Path = ()


@dataclass(eq=False)
class Step:
    """One node, with the memories that it reads and those that it makes."""

    node: Node
    reads: tuple[Memory, ...]
    makes: tuple[Memory, ...]


class LiveBytes:
    """Peaks of the functions of a module. Who moves an operation moves its step, too."""

    def __init__(self, module: Module) -> None:
        self.functions: Mapping[str, Operation] = module.functions()
        self.memories = Memories(self.functions)
        self.backward_at: dict[str, int] = {}
        """By function whose steps are known: the number of the first step that runs behind the forward."""
        self._steps: dict[str, list[Step]] = {}
        self._peaks: dict[tuple[str, frozenset[int]], Peak] = {}

    def steps(self, name: str) -> list[Step]:
        """The nodes of a function in the order in which a program runs them: of `main`, first the forward."""
        if name not in self._steps:
            graph = self.memories.graph(name)
            late = behind(graph) if name == "main" else set[Node]()
            order = [node for node in graph.nodes if node not in late] + [node for node in graph.nodes if node in late]
            self._steps[name] = steps_of(order, self.memories.of(name))
            self.backward_at[name] = len(graph.nodes) - len(late)
        return self._steps[name]

    def peak(self, name: str, owned: frozenset[int] = frozenset()) -> Peak:
        """The peak of a function beyond what its caller holds; arguments with the numbers `owned` are its to free."""
        if (name, owned) not in self._peaks:
            self._peaks[name, owned] = self._walk(name, owned)
        return self._peaks[name, owned]

    def forget_peaks(self) -> None:
        """Compute peaks anew: the steps have another order."""
        self._peaks.clear()

    def _walk(self, name: str, owned: frozenset[int]) -> Peak:
        function, steps, found = self.functions[name], self.steps(name), self.memories.of(name)
        arguments = entry(function).arguments
        sizes = {found[arguments[number]]: bytes_of(arguments[number]) for number in owned}
        kept = {found[value] for value in terminator(function).operands}
        ends = last_reads(steps, kept)
        alive, most = 0, Peak(0)
        for index, step in enumerate(steps):
            for memory in step.makes:
                sizes[memory] = self.memories.bytes.get(memory, 0)
            freed = sum(sizes.get(memory, 0) for memory in ends.get(index, ()))
            made = sum(sizes[memory] for memory in step.makes)
            if step.node.callee is not None:
                dead = {memory for memory in ends.get(index, ()) if memory in sizes and memory not in step.makes}
                inner = self.peak(step.node.callee, self._owned(step.node, found, dead))
                if alive + inner.bytes > most.bytes:
                    most = Peak(alive + inner.bytes, ((name, index), *inner.path))
            elif alive + made > most.bytes:
                most = Peak(alive + made, ((name, index),))
            alive += made - freed
            if alive > most.bytes:
                most = Peak(alive, ((name, index),))
        return most

    def _owned(self, call: Node, found: Mapping[Value, Memory], dead: set[Memory]) -> frozenset[int]:
        seen: set[Memory] = set()
        owned = []
        for number, value in enumerate(call.operands):
            if found[value] in dead and found[value] not in seen:
                owned.append(number)
                seen.add(found[value])
        return frozenset(owned)


def steps_of(nodes: Sequence[Node], found: Mapping[Value, Memory]) -> list[Step]:
    """Nodes in their order, with what they read and make."""
    starts = {future: node for node in nodes if node.name in STARTS for future in node.values}
    results = {node.operands[0]: node.values[0] for node in nodes if node.name == WAIT}
    made: set[Memory] = set()
    steps = []
    for node in nodes:
        values, reads = node.values, [found[value] for value in node.operands]
        if node.name in STARTS:
            values = [results[future] for future in node.values if future in results]
        elif node.name == WAIT and node.operands[0] in starts:
            reads += [found[value] for value in starts[node.operands[0]].operands]
        new = [m for m in dict.fromkeys(found[v] for v in values) if m not in made and m not in reads]
        made.update(new)
        steps.append(Step(node, tuple(dict.fromkeys(reads)), tuple(new)))
    return steps


def last_reads(steps: Sequence[Step], kept: set[Memory]) -> dict[int, list[Memory]]:
    """By number of a step: the memories that nothing reads behind it; never those in `kept`."""
    last: dict[Memory, int] = {}
    for index, step in enumerate(steps):
        last.update(dict.fromkeys((*step.reads, *step.makes), index))
    ends: dict[int, list[Memory]] = {}
    for memory, index in last.items():
        if memory not in kept:
            ends.setdefault(index, []).append(memory)
    return ends
