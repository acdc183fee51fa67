"""Which ranks run a module, at which entry each begins, what it takes, and what the ranks give together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..module import Level, Record
from ..pipelined_module import microbatches, space
from .code import Code, Port
from .cutting import check_agree, cut, join
from .errors import NO_MEANING, InterpreterError
from .grid import Grid
from .padding import Padding


def grid_of(code: Code) -> Grid:
    """The ranks that run a module: one at level `aten`; where stages have entries, microbatches are no ranks."""
    if code.level is Level.ATEN:
        return Grid(())
    return Grid(code.mesh) if code.axis is None else Grid(space(code.mesh), microbatches(code.mesh))


def entry_of(code: Code, grid: Grid, rank: int) -> int:
    """The number of the entry where a rank begins."""
    return 0 if code.axis is None else grid.coordinate(rank, [code.axis])


def taken(code: Code, grid: Grid, rank: int, inputs: Sequence[Tensor], padding: Padding) -> list[Tensor]:
    """What a rank's entry takes of the global inputs: its part of each."""
    entry = entry_of(code, grid, rank)
    mine = [(place, at) for at, port in enumerate(code.arguments) if (place := port.places[entry]) is not None]
    ordered = [at for _, at in sorted(mine)]
    if code.level is Level.ATEN:
        return [inputs[at] for at in ordered]
    return [cut(inputs[at], code.arguments[at].type, rank, grid, padding) for at in ordered]


def given(code: Code, grid: Grid, port: Port, held: Sequence[Sequence[Tensor]], name: str) -> Tensor:
    """A global result of what the ranks' entries gave; E0659 where ranks or stages that should hold the same do not."""
    places = {entry: place for entry, place in enumerate(port.places) if place is not None}
    if code.axis is None or len(places) == len(port.places):
        parts = [values[places[entry_of(code, grid, rank)]] for rank, values in enumerate(held)]
        return join(parts, port.type, grid, name)
    if code.axis in dict(port.type.placement):
        raise InterpreterError(NO_MEANING, f'result "{name}" lies over all stages, and some do not give it')
    stages = [
        join([held[rank][place] for rank in grid.at(code.axis, entry)], port.type, grid.without(code.axis), name)
        for entry, place in places.items()
    ]
    for entry, other in zip(list(places)[1:], stages[1:], strict=True):
        check_agree(stages[0], other, f"stages {next(iter(places))} and {entry}", name)
    return stages[0]


def result_name(record: Record, index: int) -> str:
    """What a result (or an argument) is called in messages."""
    kind, name = record.get("kind", ""), record.get("name", "")
    return " ".join(part for part in (str(kind), str(name)) if part) or f"number {index}"
