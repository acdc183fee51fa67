"""The dtype of every reduction of a gradient over ranks, in the program's own instructions, against what the plan says.

The manifest has the dtype that the plan says ("reduce"), or "own": that of each parameter. A reduction of a gradient is
one over axes that the batch is sharded over, on the way from a gradient back through casts, sums and views. Numbers do
not show a reduction in a shorter dtype: its error is of the size of the other rounding. Of a gradient that is a sum,
parts may be reduced in a longer dtype than the plan says: they are partial on other axes, or one is not partial at all.
Sums over the microbatches of a pipeline must have that dtype, or a longer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ..program.arguments import DTYPES
from ..program.entries import Entry
from ..program.ops import COALESCED
from ..program.program import Program
from ..program.records import Function, Instruction, Output
from ..prover.analysis import Analysis
from ..prover.collectives import Collective
from ..prover.pieces import Calls, Own, Pieces
from ..prover.values import Refuted
from .report import CheckRow, Verdict

REDUCE = "reduce"
"""The key of the manifest's arguments."""
STORED_REDUCE = "stored reduce"
"""That of the dtype for parameters that are stored in parts, where it is another."""
OWN = "own"
_ONE_TENSOR = ("comm.all_reduce_start", "comm.reduce_scatter_start")
_REDUCTIONS = (*_ONE_TENSOR, *(name for name, one in COALESCED.items() if one in _ONE_TENSOR))
_PASSING = frozenset(
    {
        "_to_copy", "add", "view", "reshape", "_unsafe_view", "t", "transpose", "permute", "alias", "slice", "clone",
        "expand", "unsqueeze", "squeeze", "constant_pad_nd", "div", "mul", "cat", "narrow", "select",
    }
)  # fmt: skip
"""Base names of aten ops that a gradient passes between its reduction and its parameter."""
Site = tuple[str, int]
"""A function and the index of an instruction."""
_Callers = tuple[tuple[str, Instruction], ...]
"""By how a function was called, outermost first: the caller and its call."""


def wrong_reductions(program: Program) -> Iterator[CheckRow]:
    """A row for each gradient that is reduced, or summed over microbatches, in another dtype than the plan says."""
    stated = program.manifest.arguments.get(REDUCE)
    of_stored = program.manifest.arguments.get(STORED_REDUCE, stated)
    stored = {each.name for each in program.of_kind("parameter") if each.stored_over}
    axes = _batch_axes(program)
    if not isinstance(stated, str):
        return
    makers = {name: _makers(function) for name, function in program.functions.items()}
    for entry in program.entries:
        dtypes = _collective_dtypes(program, entry) if axes else {}
        for gradient in entry.gradients:
            named = str(of_stored) if gradient.name in stored else stated
            expected = gradient.dtype if named == OWN else named
            walk = _Walk(program.functions, axes, makers)
            found = {
                dtype
                for site, is_part in walk.from_result(entry.name, gradient)
                for dtype in dtypes.get(site, ())
                if not (is_part and _holds(dtype, expected))
            }
            for dtype in sorted(found - {expected}):
                note = f"it is reduced in {dtype}, and the plan says {expected}"
                yield CheckRow("reduction", gradient.name, float("inf"), Verdict.DIFFERS, note)
            for dtype in sorted({_sum_dtype(program, *site, expected) for site in walk.microbatch_sums}):
                if not _holds(dtype, expected) and not (dtype == stated and gradient.name in stored):
                    note = f"it is summed over microbatches in {dtype}, and the plan says {expected}"
                    yield CheckRow("reduction", gradient.name, float("inf"), Verdict.DIFFERS, note)


def _makers(function: Function) -> Mapping[int, int]:
    """By slot, the index of the last instruction that writes it."""
    return {slot: index for index, instruction in enumerate(function.code) for slot in instruction.writes()}


def _holds(dtype: str, other: str) -> bool:
    """Whether a dtype has all numbers of another."""
    return torch.promote_types(DTYPES[dtype], DTYPES[other]) == DTYPES[dtype]


def _sum_dtype(program: Program, function: str, index: int, unknown: str) -> str:
    """The dtype of a sum; `unknown` in a program that states no types."""
    [slot] = program.functions[function].code[index].writes()
    type_ = program.type_of(function, slot) if program.states_types else None
    return unknown if type_ is None else type_.dtype


def _batch_axes(program: Program) -> frozenset[str]:
    """The axes that some input is sharded over."""
    return frozenset(axis for each in program.of_kind("input") for shard in each.shards for axis in shard.axes)


def _collective_dtypes(program: Program, entry: Entry) -> Mapping[Site, set[str]]:
    """The dtypes of each collective that an entry and what it calls starts; empty where the order prover refuses it."""
    analysis = Analysis(program.mesh)
    try:
        summary, _ = analysis.program(program, entry)
    except Refuted:
        return {}
    dtypes: dict[Site, set[str]] = {}
    for each in _reached(summary.events, {}):
        for piece in each.pieces:
            event = analysis.events[piece.number] if isinstance(piece, Own) else None
            if isinstance(event, Collective):
                dtypes.setdefault((each.name, piece.index), set()).add(event.dtype)
    return dtypes


def _reached(events: Pieces, seen: dict[Pieces, None]) -> Iterable[Pieces]:
    """The events of a function and of all that it calls, each function once."""
    if events not in seen:
        seen[events] = None
        for piece in events.pieces:
            if isinstance(piece, Calls):
                _reached(piece.callee, seen)
    return seen


@dataclass
class _Walk:
    """From a gradient back to its reductions, and whether each is of a part of a sum."""

    functions: Mapping[str, Function]
    axes: frozenset[str]
    makers: Mapping[str, Mapping[int, int]]
    """By function and slot, the index of the instruction that makes the value."""
    microbatch_sums: list[Site] = field(default_factory=list)
    """The additions on the way that add up gradients of microbatches."""
    _seen: set[tuple[str, int, bool]] = field(default_factory=set)
    _summed: dict[tuple[str, int], frozenset[object]] = field(default_factory=dict)

    def from_result(self, name: str, gradient: Output) -> Iterator[tuple[Site, bool]]:
        """The reductions that give the result of an entry."""
        yield from self._value(name, gradient.slot, (), is_part=False)

    def _value(self, name: str, slot: int, calls: _Callers, *, is_part: bool) -> Iterator[tuple[Site, bool]]:
        if (name, slot, is_part) in self._seen:
            return
        self._seen.add((name, slot, is_part))
        function = self.functions[name]
        maker = self.makers[name].get(slot)
        if maker is not None:
            yield from self._maker(name, maker, slot, calls, is_part=is_part)
        elif calls and slot in function.arguments:
            caller, call = calls[-1]
            operand = call.reads()[function.arguments.index(slot)]
            yield from self._value(caller, operand, calls[:-1], is_part=is_part)

    def _maker(
        self, name: str, index: int, slot: int, calls: _Callers, *, is_part: bool
    ) -> Iterator[tuple[Site, bool]]:
        instruction = self.functions[name].code[index]
        if instruction.op == "call":
            callee = str(instruction.args[0])
            result = self.functions[callee].results[instruction.out.index(slot)]
            yield from self._value(callee, result, (*calls, (name, instruction)), is_part=is_part)
            return
        if instruction.op in _REDUCTIONS and self._is_of_batch(instruction):
            yield (name, index), is_part
        if _passes_on(instruction):
            operands = instruction.reads()
            is_sum = instruction.op.startswith("aten.add.") and len(operands) > 1
            if is_sum and not calls and len({self._microbatches(name, operand) for operand in operands}) > 1:
                self.microbatch_sums.append((name, index))
            for operand in (operands[instruction.out.index(slot)],) if instruction.op in COALESCED else operands:
                yield from self._value(name, operand, calls, is_part=is_part or is_sum)

    def _microbatches(self, name: str, slot: int) -> frozenset[object]:
        """The microbatches of an entry whose calls a value is the sum of."""
        if (name, slot) not in self._summed:
            self._summed[name, slot] = self._summed_in(name, slot)
        return self._summed[name, slot]

    def _summed_in(self, name: str, slot: int) -> frozenset[object]:
        index = self.makers[name].get(slot)
        maker = None if index is None else self.functions[name].code[index]
        if maker is None or maker.op in COALESCED:
            return frozenset()
        if maker.op == "call":
            microbatch = maker.kwargs.get("microbatch")
            return frozenset([tuple(microbatch) if isinstance(microbatch, list) else microbatch])
        operands = maker.reads() if _passes_on(maker) else ()
        return frozenset().union(*(self._microbatches(name, operand) for operand in operands))

    def _is_of_batch(self, instruction: Instruction) -> bool:
        axes = instruction.kwargs.get("axes")
        over = {str(axis) for axis in axes} if isinstance(axes, list | tuple) else set()
        return instruction.kwargs.get("reduce") == "sum" and bool(over & self.axes)


def _passes_on(instruction: Instruction) -> bool:
    if instruction.op == "comm.wait" or (instruction.op.startswith("comm.") and instruction.op.endswith("_start")):
        return bool(instruction.reads())
    return instruction.op.startswith(("rank.shard", "rank.mask")) or instruction.op.split(".")[1] in _PASSING
