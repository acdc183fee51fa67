"""An oracle for orders of collectives: every rank's starts, played one by one until all are done or all wait."""

from __future__ import annotations

from collections.abc import Iterator

from stretto.ir.interpreter.grid import Grid
from stretto.runtime.program.program import Program
from stretto.runtime.prover import RankClass

from .program_editing import is_start

Axes = tuple[str, ...]


def comes_to_its_end(classes: list[RankClass]) -> bool:
    """Whether all ranks start all their collectives, when each waits in the first until its whole group is there."""
    grid = Grid(classes[0].program.manifest.mesh)
    left = {rank: list(_starts(rank_class.program, "main")) for rank_class in classes for rank in rank_class.ranks}
    moved = True
    while moved:
        moved = False
        for rank in range(grid.ranks):
            if left[rank]:
                group = grid.group(rank, left[rank][0])
                if all(left[member][:1] == left[rank][:1] for member in group):
                    for member in group:
                        left[member].pop(0)
                    moved = True
    return not any(left.values())


def _starts(program: Program, name: str) -> Iterator[Axes]:
    """The axes of each collective that a function starts, in order."""
    for instruction in program.functions[name].code:
        if instruction.op == "call":
            yield from _starts(program, str(instruction.args[0]))
        elif is_start(instruction):
            axes = instruction.kwargs["axes"]
            assert isinstance(axes, list | tuple)
            yield tuple(str(axis) for axis in axes)
