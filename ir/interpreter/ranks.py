"""The ranks that run a module: their entry functions, local inputs, and joined results."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..module import Level, Record
from ..pipelined_module import microbatches, rank_axes
from .code import Code, Port
from .cutting import check_agree, cut, join
from .errors import NO_MEANING, InterpreterError
from .grid import Grid
from .padding import Padding


def grid_of(code: Code) -> Grid:
    """The ranks that run a module: one at level `aten`; in a pipelined module in order, microbatches are not ranks."""
    if code.level is Level.ATEN:
        return Grid(())
    return Grid(code.mesh) if code.axis is None else Grid(rank_axes(code.mesh), microbatches(code.mesh))


def entry_of(code: Code, grid: Grid, rank: int) -> int:
    """The index of a rank's entry function."""
    return 0 if code.axis is None else grid.coordinate(rank, [code.axis])


def local_inputs(code: Code, grid: Grid, rank: int, inputs: Sequence[Tensor], padding: Padding) -> list[Tensor]:
    """The arguments of a rank's entry function: its part of each global input."""
    entry = entry_of(code, grid, rank)
    own_ports = [
        (position, index) for index, port in enumerate(code.arguments) if (position := port.places[entry]) is not None
    ]
    ordered = [index for _, index in sorted(own_ports)]
    if code.level is Level.ATEN:
        return [inputs[index] for index in ordered]
    return [cut(inputs[index], code.arguments[index].type, rank, grid, padding) for index in ordered]


def global_result(code: Code, grid: Grid, port: Port, local_values: Sequence[Sequence[Tensor]], name: str) -> Tensor:
    """The global tensor of a result, joined over ranks; E0659 if replicas on ranks or stages differ."""
    positions = {entry: position for entry, position in enumerate(port.places) if position is not None}
    if code.axis is None or len(positions) == len(port.places):
        parts = [values[positions[entry_of(code, grid, rank)]] for rank, values in enumerate(local_values)]
        return join(parts, port.type, grid, name)
    if code.axis in dict(port.type.placement):
        raise InterpreterError(
            NO_MEANING, f'result "{name}" is sharded over the pipeline axis, but some stages do not return it'
        )
    stages = [
        join(
            [local_values[rank][position] for rank in grid.at(code.axis, entry)],
            port.type,
            grid.without(code.axis),
            name,
        )
        for entry, position in positions.items()
    ]
    for entry, value in zip(list(positions)[1:], stages[1:], strict=True):
        check_agree(stages[0], value, f"stages {next(iter(positions))} and {entry}", name)
    return stages[0]


def result_name(record: Record, index: int) -> str:
    """The name of a result (or an argument) in messages."""
    kind, name = record.get("kind", ""), record.get("name", "")
    return " ".join(part for part in (str(kind), str(name)) if part) or f"number {index}"
