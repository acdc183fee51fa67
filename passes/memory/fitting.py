"""`recompute auto`: which values the backward computes again so that a step fits into memory, for the least time.

Each value that crosses has a price: the time of what runs again for it alone, over the bytes that go. The cheapest are
dropped one after the other, each on a copy of the module, until the estimated peak fits; one that raises the peak is
not. What the peak does not need of these, the dearest first, stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...costs.compute import bytes_of, op_time
from ...ir.locations import Origin
from ...ir.module import Module
from ..base import Remark, RemarkKind
from ..counted_remarks import CountedRemarks
from ..graph import Graph, Node
from ..layers.joint_layers import joined
from .again import Again
from .kept import Memories, Memory
from .peak import peak_bytes
from .regions import Regions, is_view, kind_of
from .rewriting import places_of_calls, rewrite

_PASS = "recompute"
MAX_CANDIDATES = 64
"""Of these, the most bytes at all calls: each is tried on a copy of the module."""
MAX_PRUNED = 16
"""How many of the dearest values are tried without: what is not alive at the peak need not be dropped."""


@dataclass(frozen=True)
class Candidate:
    """The values of one function that lie in one piece of memory, at all calls."""

    function: str
    numbers: tuple[int, ...]
    time: float
    """Of what runs again, in bytes moved (`costs/compute.py`)."""
    saved_bytes: int
    kind: str
    place: Origin
    calls: int


def fit(module: Module, regions: Regions, margin: int, remarks: list[Remark]) -> int:
    """Drop the cheapest values until the estimated peak fits: how many operations run again."""
    statement = regions.statement
    assert statement.memory is not None
    before = peak_bytes(module)
    target = statement.memory - margin
    if before <= target:
        message = f"nothing is computed again: the estimated peak of {before} bytes fits"
        remarks.append(Remark(_PASS, RemarkKind.NOTE, message, span=statement.span))
        return 0
    text = module.text()
    candidates = _candidates(Module.parse(text), regions)

    def peak_with(some: Sequence[Candidate]) -> int:
        trial = Module.parse(text)
        rewrite(trial, regions, _chosen(some))
        return peak_bytes(trial)

    chosen, present = list[Candidate](), before
    for each in candidates:
        peak = peak_with([*chosen, each])
        if peak <= present:  # else it runs again at the peak, with all that it needs
            chosen, present = [*chosen, each], peak
        if present <= target:
            break
    for dear in sorted(chosen, key=lambda each: -each.time * each.calls)[:MAX_PRUNED]:
        others = [each for each in chosen if each is not dear]
        if peak_with(others) <= max(present, target):
            chosen = others
    count, flops = rewrite(module, regions, _chosen(chosen))
    after = peak_bytes(module)
    message = f"the backward computes {count} operations again ({flops:.3g} FLOPs on a rank): the estimated peak is"
    message += f" {after} bytes, {before - after} fewer than without"
    remarks.append(Remark(_PASS, RemarkKind.APPLIED, message, span=statement.span))
    if after > target:
        message = f"all that may be computed again leaves an estimated peak of {after} bytes"
        remarks.append(Remark(_PASS, RemarkKind.MISSED, message, span=statement.span))
    choices = CountedRemarks(_PASS)
    for each in chosen:
        choices.applied(f"{each.kind} is computed again, {each.saved_bytes} bytes", each.place, each.calls)
    remarks += choices.remarks()
    return count


def _kind(cone: Sequence[Node]) -> str:
    """The kind of the last operation that computes."""
    return kind_of(next((node for node in reversed(cone) if not is_view(node)), cone[-1]))


def _chosen(candidates: Sequence[Candidate]) -> Mapping[str, set[int]]:
    chosen: dict[str, set[int]] = {}
    for each in candidates:
        chosen.setdefault(each.function, set()).update(each.numbers)
    return chosen


def _candidates(module: Module, regions: Regions) -> list[Candidate]:
    """What may be dropped, the cheapest by time for the bytes first. It takes the module apart."""
    found: list[Candidate] = []
    of_main = Memories(module.functions())
    of_main.of("main")  # as long as its calls are those of the functions
    with joined(module):
        functions, layers = module.functions(), places_of_calls(module)
        for name, function in functions.items():
            memories = of_main if name == "main" else Memories(functions)
            places = layers.get(name, [Origin()])
            graph, memory_of = Graph.of(function), memories.of(name)
            groups: dict[Memory, list[tuple[int, float, int, Origin, str]]] = {}
            for number, value, cone, needed in Again(graph, regions, places[0]).costs():
                time = sum(op_time(node.call, node.operands, node.values) for node in cone if node.call is not None)
                extra = sum(map(bytes_of, needed))
                maker = graph.maker[value]
                groups.setdefault(memory_of[value], []).append((number, time, extra, maker.origin, _kind(cone)))
            for memory, members in groups.items():
                saved = memories.bytes.get(memory, 0) - sum(extra for _, _, extra, _, _ in members)
                if saved > 0:
                    numbers = tuple(number for number, *_ in members)
                    time = max(time for _, time, *_ in members)
                    place, kind = members[0][3:]
                    found.append(Candidate(name, numbers, time, saved, kind, place, len(places)))
    largest = sorted(found, key=lambda each: -each.saved_bytes * each.calls)[:MAX_CANDIDATES]
    return sorted(largest, key=lambda each: (each.time / each.saved_bytes, each.function, each.numbers))
