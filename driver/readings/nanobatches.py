"""What a program does not split as the text of its plan splits the tokens or the batch: number, sizes and order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ...runtime.program.program import Program
from ...runtime.program.records import Function
from .input_cuts import batch_of
from .phases import forward_code, local_extent
from .plan_text import PlanText, covers

_PRODUCTS = ("aten.mm.", "aten.addmm.")
"""Operations whose results have a row for each row of tokens."""
_WORK = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution")
"""Operations that compute with weights: each line of a model has them once, but for nanobatches."""
_LAYER = re.compile(r"(?:^|\.)(?:\d+|\*)(?:\.|$)")


def run_once_against_plan(program: Program, plan: PlanText) -> Iterator[tuple[str, str]]:
    """A name and a note for each statement by which something is to run N times, if nothing does.

    Of those with `from` it says nothing: they may do nothing.
    """
    for subject, count, items in plan.split:
        if "from" in items:
            continue
        patterns = tuple(pattern[1:-1] for pattern in items.get("in", ()))
        times = _times(program, patterns)
        if times and all(each % count for each in times.values()):
            yield f"split {subject}", f"the program runs no layer in {count} nanobatches, as the plan says"
            continue
        sizes = [int(size) for size in items.get("sizes", ["1"] * count)]
        if not _has_sizes(program, plan, subject, sizes, patterns):
            text = ", ".join(map(str, sizes))
            yield f"split {subject} sizes", f"the program runs no layer in parts of the ratio {text}, as the plan says"
        if items.get("order") == ["interleave"] and _are_in_sequence(program, count, patterns):
            yield f"split {subject} order", "the program runs nanobatches one after the other; the plan says interleave"


def _has_sizes(program: Program, plan: PlanText, subject: str, sizes: Sequence[int], patterns: tuple[str, ...]) -> bool:
    """Whether some product of the forward has rows in the ratio `sizes`, to less than one row of the input.

    Of pipelines, and where no product has as many parts, nothing is known.
    """
    inputs = {each.name: each for each in sorted(program.of_kind("input"), key=lambda each: each.index or 0)}
    batch = batch_of(plan, {name: each.shape for name, each in inputs.items()})
    dim = 0 if subject == "batch" else 1
    extents = [local_extent(inputs[name], dim) for name in batch if len(inputs[name].shape) > dim]
    if program.pipeline is not None or not extents:
        return True
    found = []
    for function, code in forward_code(program):
        rows: dict[tuple[str, int], list[int]] = {}
        for step in code:
            if step.op.startswith(_PRODUCTS) and step.loc is not None:
                type_ = program.type_of(function, step.writes()[0])
                if type_ is not None and is_about(program.locations[step.loc].module, patterns):
                    rows.setdefault((step.op, step.loc), []).append(type_.shape[0])
        found += [parts for parts in rows.values() if len(parts) == len(sizes) and sum(parts) % extents[0] == 0]
    return not found or any(_are_in_ratio(parts, sizes, extents[0]) for parts in found)


def _are_in_ratio(parts: Sequence[int], sizes: Sequence[int], extent: int) -> bool:
    pairs = zip(parts, sizes, strict=True)
    return all(abs(part * extent / sum(parts) - extent * size / sum(sizes)) < 1 for part, size in pairs)


def _are_in_sequence(program: Program, count: int, patterns: tuple[str, ...]) -> bool:
    """Whether nowhere nanobatches take turns, although in one of them products stand behind a collective."""
    is_sequence = False
    for function in program.functions.values():
        products = _parts(program, function, patterns, count, tuple(f"aten.{kind}." for kind in _WORK))
        collectives = _parts(program, function, patterns, count, ("comm.",))
        if products and collectives:
            turns = [[places[index] for places in products] for index in range(count)]
            if any(max(before) > min(after) for before, after in pairwise(turns)):
                return False
            is_sequence |= max(turns[0]) > min(places[0] for places in collectives)
    return is_sequence


def _parts(
    program: Program, function: Function, patterns: tuple[str, ...], count: int, ops: tuple[str, ...]
) -> list[list[int]]:
    """The positions of each operation that a function has once for each nanobatch."""
    found: dict[tuple[object, ...], list[int]] = {}
    for index, step in enumerate(function.code):
        is_one = step.op.startswith(ops) and not step.op.startswith("comm.wait")
        if is_one and step.loc is not None and is_about(program.locations[step.loc].module, patterns):
            found.setdefault((step.op, step.loc, function.types[step.writes()[0]]), []).append(index)
    return [indices for indices in found.values() if len(indices) == count]


def _times(program: Program, patterns: tuple[str, ...]) -> Counter[tuple[str, str, int]]:
    """By function, operation and place of a layer, or of a module that a glob covers: how often the forward has it."""
    times: Counter[tuple[str, str, int]] = Counter()
    for name, code in forward_code(program):
        for step in code:
            kind = step.op.split(".")[1] if step.op.startswith("aten.") else ""
            if kind in _WORK and step.loc is not None and is_about(program.locations[step.loc].module, patterns):
                times[name, step.op, step.loc] += 1
    return times


def is_about(module: str, patterns: tuple[str, ...]) -> bool:
    """Whether a place is in a module that one of the globs covers; without globs, in a layer."""
    if not patterns:
        return bool(_LAYER.search(module))
    parts = module.split(".")
    around = [".".join(parts[: count + 1]) for count in range(len(parts))]
    numbered = [pattern for pattern in patterns if "*" not in module or not any(c.isdigit() for c in pattern)]
    return any(covers(pattern, path) for pattern in numbered for path in around)
