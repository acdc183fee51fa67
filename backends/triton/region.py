"""A fused region: a function of a program whose instructions are to become one kernel, with the types of its slots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch

from ...runtime.program.arguments import DTYPES, Slot, encode, slots_in
from ...runtime.program.records import Function, Instruction, SlotType

VERSION = 1
"""Of the generator. Another one writes other kernels, so caches of both live side by side."""


class Declined(Exception):
    """The generator writes no kernel for a region, and why; its instructions run one by one instead."""


@dataclass(frozen=True)
class Region:
    """Instructions on slots: `inputs` are given, `outputs` are wanted, each a tensor of a known type."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    code: tuple[Instruction, ...]
    types: Mapping[int, SlotType]

    @staticmethod
    def of(function: Function, types: Sequence[SlotType]) -> Region:
        """The region that a function of a program holds. Raises Declined where a slot has no type."""
        if not function.types:
            raise Declined("the program does not state the types of its slots")
        stated = {slot: types[index] for slot, index in enumerate(function.types) if index is not None}
        future = next((slot for slot, type_ in stated.items() if type_.is_future), None)
        if future is not None:
            raise Declined("it waits for communication")
        return Region(function.arguments, function.results, function.code, stated)

    def shape(self, slot: int) -> tuple[int, ...]:
        return self.types[slot].shape

    def dtype(self, slot: int) -> torch.dtype:
        return DTYPES[self.types[slot].dtype]

    def numel(self, slot: int) -> int:
        return prod(self.shape(slot))

    @cached_property
    def makers(self) -> dict[int, Instruction]:
        """By slot, the instruction that sets it."""
        return {slot: instruction for instruction in self.code for slot in instruction.writes()}

    @cached_property
    def text(self) -> str:
        """What it computes; equal for equal regions, however their slots are numbered."""
        numbers: dict[int, int] = {}
        for slot in self._in_order():
            numbers.setdefault(slot, len(numbers))
        lines = [f"inputs {[f'{numbers[s]}: {self.types[s]}' for s in self.inputs]}"]
        for instruction in self.code:
            arguments = json.dumps(
                [encode(_renumbered(list(instruction.args), numbers)), _keywords(instruction, numbers)]
            )
            made = [None if s is None else f"{numbers[s]}: {self.types[s]}" for s in instruction.out]
            lines.append(f"{instruction.op} {arguments} {made}")
        return "\n".join([*lines, f"outputs {[numbers[s] for s in self.outputs]}"])

    def digest(self, target: str) -> str:
        """The key of its kernel for a target such as "cuda:90"."""
        return hashlib.sha256(f"{VERSION}\n{target}\n{self.text}".encode()).hexdigest()[:16]

    def _in_order(self) -> Iterator[int]:
        yield from self.inputs
        for instruction in self.code:
            yield from instruction.writes()


def _renumbered(value: object, numbers: Mapping[int, int]) -> object:
    if isinstance(value, Slot):
        return Slot(numbers[value.index])
    if isinstance(value, list | tuple):
        return [_renumbered(item, numbers) for item in value]
    return value


def _keywords(instruction: Instruction, numbers: Mapping[int, int]) -> dict[str, object]:
    return {key: encode(_renumbered(value, numbers)) for key, value in sorted(instruction.kwargs.items())}


def operands(instruction: Instruction) -> list[int]:
    """The slots that an instruction reads, in order."""
    return list(slots_in([*instruction.args, *instruction.kwargs.values()]))
