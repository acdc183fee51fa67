"""The stages of a pipeline program: the parameters, tasks and sends of each in one step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ...runtime.program.arguments import DTYPES, Json
from ...runtime.program.entries import MICROBATCH, records_of_stage
from ...runtime.program.program import Program
from ...runtime.rank.shards import local_shape
from .traffic import SEND, Traffic


@dataclass(frozen=True)
class Sends:
    """What a rank of one stage sends to another stage in one step."""

    to: int
    count: int
    bytes: int

    def to_json(self) -> dict[str, Json]:
        return {"to": self.to, "count": self.count, "bytes": self.bytes}


@dataclass(frozen=True)
class Stage:
    """The ranks at one coordinate of the pipeline axis."""

    number: int
    parameters: int
    parameter_bytes: int
    """The bytes on one rank, padding included."""
    tasks: tuple[tuple[str, int], ...]
    """(function, calls in a step), in the order of the first calls."""
    sends: tuple[Sends, ...]

    def to_json(self) -> dict[str, Json]:
        return {
            "stage": self.number, "parameters": self.parameters, "parameter_bytes_per_rank": self.parameter_bytes,
            "tasks": dict(self.tasks), "sends": [sends.to_json() for sends in self.sends],
        }  # fmt: skip


def stages_of(program: Program, traffic: Traffic) -> tuple[Stage, ...]:
    """The stages in order; empty without a pipeline."""
    if program.pipeline is None:
        return ()
    return tuple(_stage(program, traffic, number) for number in range(len(program.pipeline.entries)))


def _stage(program: Program, traffic: Traffic, number: int) -> Stage:
    parameters = records_of_stage(program.of_kind("parameter"), number)
    sizes = [
        prod(local_shape(parameter.shape, parameter.shards)) * DTYPES[parameter.dtype].itemsize
        for parameter in parameters
    ]
    code = program.functions[program.entries[number].name].code
    tasks = Counter(
        str(parameter.args[0]) for parameter in code if parameter.op == "call" and MICROBATCH in parameter.kwargs
    )
    return Stage(number, len(parameters), sum(sizes), tuple(tasks.items()), tuple(_sends(traffic, number)))


def _sends(traffic: Traffic, number: int) -> Sequence[Sends]:
    counts: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for site, count in traffic.items():
        if site.kind == SEND and site.stage == number and site.peer is not None:
            counts[site.peer] += count
            sizes[site.peer] += count * site.sent_bytes
    return [Sends(peer, counts[peer], sizes[peer]) for peer in sorted(counts)]
