"""What a plan makes of a model's function, where its statements say that it is another."""

from __future__ import annotations

from ...runtime.checks.capacity import capacities
from ...runtime.program.program import Program
from ..text.console import count_text


def changes(program: Program) -> list[str]:
    """A line for each change; empty for a program that computes what the model does."""
    by_capacity: dict[float, int] = {}
    for number in capacities(program).values():
        by_capacity[number] = by_capacity.get(number, 0) + 1
    lines = [
        f"experts ({count_text(count, 'parameter')}) take {number:g} times the even share of rows, and drop others"
        for number, count in by_capacity.items()
    ]
    pipeline = program.pipeline
    if pipeline is not None and pipeline.separate_microbatches and pipeline.microbatches > 1:
        lines.append(f"the loss is the mean of those of {pipeline.microbatches} microbatches, each computed alone")
    return lines
