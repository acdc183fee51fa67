"""Compare when a program gathers stored parameters, and how many at once, with what the text of its plan says.

Read of the instructions of `main`: how often a parameter is gathered, whether what the forward gathered serves the
backward, how many units ahead of its use a gather starts, and the bytes of buckets. A unit is a call of a layer, or
what one module does with its gathered parameters. Of pipelines nothing is said: their tasks gather.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from ...runtime.program.arguments import DTYPES
from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction
from .plan_text import PlanText

_GATHERS = ("comm.all_gather_start", "comm.all_gather_coalesced_start", "comm.all_gather", "comm.all_gather_coalesced")
_CASTS = ("aten._to_copy.default",)
Fact = tuple[str, object, object]
"""A fact's name, the program's word, the plan's."""


def stored_facts(program: Program, plan: PlanText) -> Iterator[Fact]:
    """Facts of all `zero` statements; those that a plan has none of are not compared."""
    stated = plan.zero
    if not stated or program.pipeline is not None or not any(p.stored_over for p in program.of_kind("parameter")):
        return
    gathers = _Gathers.of(program)
    levels = {level for level, _ in stated}
    if len(levels) == 1:
        yield from _when(program, gathers, next(iter(levels)), [items for _, items in stated])
    if levels == {"3"}:
        ahead = int(next((items["prefetch"][0] for _, items in stated if "prefetch" in items), "1"))
        if (found := gathers.most_ahead) > ahead:
            yield "zero prefetch", f"a gather {found} units ahead of its use", f"{ahead}"
    yield from _buckets(
        program, next((plan.bytes_of(items["bucket"][0]) for _, items in stated if "bucket" in items), 0)
    )


def _when(
    program: Program, gathers: _Gathers, level: str, items: Sequence[Mapping[str, Sequence[str]]]
) -> Iterator[Fact]:
    """How often parameters are gathered, and what the backward reads."""
    keeps = {each.get("keep", ["none"])[0] for each in items}
    if len(keeps) > 1 or any("within" in each for each in items):
        return
    if level in ("1", "2") or keeps == {"forward"}:
        again = [name for name, count in gathers.counts.items() if count > 1]
        if again:
            yield "zero level", f"{again[0]} gathered {gathers.counts[again[0]]} times", "it gathered once"
    elif crossing := gathers.crossing:
        yield "zero level", f"{crossing[0]}, gathered in the forward, read by the backward", "it gathered in each"


def _buckets(program: Program, most: int) -> Iterator[Fact]:
    for function in program.functions.values():
        for step in function.code:
            if "_coalesced" in step.op:
                slots = step.writes() if step.op in _GATHERS else step.reads()
                size = sum(_bytes(program, function, slot) for slot in slots)
                if size > most:
                    expected = f"{most} bytes at most" if most else "each tensor by itself"
                    yield "zero bucket", f"a bucket of {size} bytes", expected


def _bytes(program: Program, function: Function, slot: int) -> int:
    index = function.types[slot]
    if index is None:
        return 0
    dtype: torch.dtype = DTYPES[program.types[index].dtype]
    return prod(program.types[index].shape) * dtype.itemsize


@dataclass(frozen=True)
class _Gathers:
    """The gathers of stored parameters in `main`."""

    main: Function
    units: Sequence[str]
    """By instruction, its unit."""
    names: Mapping[int, str]
    """By slot that holds a gathered parameter, or its future: the parameter."""
    starts: Mapping[int, int]
    """By such a slot, the instruction that began to gather it."""
    counts: Mapping[str, int]
    """By parameter, how often it is gathered."""

    @staticmethod
    def of(program: Program) -> _Gathers:
        """Those of a program."""
        main = program.functions["main"]
        parts = {each.slot: each.name for each in program.of_kind("parameter") if each.stored_over}
        names: dict[int, str] = {}
        starts: dict[int, int] = {}
        counts: Counter[str] = Counter()
        for index, step in enumerate(main.code):
            if step.op in _CASTS and (slot := step.reads()[0]) in parts:
                parts[step.writes()[0]] = parts[slot]
            elif step.op in _GATHERS:
                for slot, out in zip(step.reads(), step.writes(), strict=True):
                    if slot in parts:
                        names[out], starts[out] = parts[slot], index
                        counts[parts[slot]] += 1
            elif step.op == "comm.wait" and (slot := step.reads()[0]) in names:
                out = step.writes()[0]
                names[out], starts[out] = names[slot], starts[slot]
        return _Gathers(
            main, [_unit(program, step, index) for index, step in enumerate(main.code)], names, starts, counts
        )

    def _uses(self) -> Iterator[tuple[int, int]]:
        """(instruction, slot) of each reader of a gathered parameter."""
        for index, step in enumerate(self.main.code):
            if step.op != "comm.wait":
                yield from ((index, slot) for slot in step.reads() if slot in self.names)

    @property
    def crossing(self) -> list[str]:
        """The parameters that the forward gathered and the backward reads."""
        begin = self.main.backward_at
        if begin is None:
            return []
        return [self.names[slot] for index, slot in self._uses() if self.starts[slot] < begin <= index]

    @property
    def most_ahead(self) -> int:
        """Between a gather's start and its first use, the most other units that use gathered parameters."""
        first: dict[int, int] = {}
        uses: dict[int, str] = {}
        for index, slot in self._uses():
            first.setdefault(slot, index)
            uses[index] = self.units[index]
        begin = len(self.main.code) if self.main.backward_at is None else self.main.backward_at
        between = (
            {unit for at, unit in uses.items() if self.starts[slot] < at < index and unit != self.units[index]}
            for slot, index in first.items()
            if index < begin
        )
        return max(map(len, between), default=0)


def _unit(program: Program, step: Instruction, index: int) -> str:
    if step.op == "call":
        return f"call {index}"
    return "" if step.loc is None else program.locations[step.loc].module
