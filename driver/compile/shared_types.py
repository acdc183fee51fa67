"""One table of types for the programs of several sizes: two types are one only where they are equal at all sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...runtime.program.program import Program
from ...runtime.program.records import Function, SlotType


def with_shared_types(programs: Sequence[Program]) -> list[Program]:
    """The programs with tables in which the same index stands for the same slots in all; views that all have are kept.

    Programs with other functions or slots are returned as they are: they differ in more than sizes.
    """
    layouts = [[(name, len(each.types)) for name, each in program.functions.items()] for program in programs]
    if any(layout != layouts[0] for layout in layouts):
        return list(programs)
    table: dict[tuple[SlotType | None, ...], int] = {}
    indices: dict[str, tuple[int | None, ...]] = {}
    views: dict[str, tuple[tuple[int, int], ...]] = {}
    for name, slots in layouts[0]:
        types = [tuple(program.type_of(name, slot) for program in programs) for slot in range(slots)]
        indices[name] = tuple(None if each[0] is None else table.setdefault(each, len(table)) for each in types)
        views[name] = tuple(
            pair
            for pair in programs[0].functions[name].views
            if all(pair in program.functions[name].views for program in programs)
        )
    shared = []
    for number, program in enumerate(programs):
        types_at = tuple(each[number] or SlotType("uint8", (0,)) for each in table)
        functions: dict[str, Function] = {
            name: replace(function, types=indices[name], views=views[name])
            for name, function in program.functions.items()
        }
        shared.append(replace(program, functions=functions, types=types_at))
    return shared
