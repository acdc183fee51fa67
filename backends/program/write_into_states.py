"""Let instructions write new values of states into the states' memory, where nothing reads the old value after them.

The ops stay functional: `into` says whose memory the result takes. A state of which an old value is still read, as by
a backward, gets its new value by a copy at the end of the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from graphlib import TopologicalSorter

from ...runtime.lanes.names import named_lanes
from ...runtime.program.arguments import Slot
from ...runtime.program.entries import MAIN
from ...runtime.program.ops import COLLECTIVES, OWN_OPS, RANK_OPS
from ...runtime.program.program import Program
from ...runtime.program.records import Function, Instruction
from ...runtime.rank.state_writes import writes_in_place


def write_into_states(program: Program) -> Program:
    """The program with `into` where it is allowed. It must state types and views.

    A function writes a result into an argument only where each call of it passes the memory of a state, reads no old
    value of it later, and takes the result as the new value of the same state. A program that names lanes is left:
    another lane may still read the old value.
    """
    returned = {output.name: output.slot for output in program.results_of_kind("state")}
    pairs = {returned[each.name]: each.slot for each in program.of_kind("state") if each.name in returned}
    if not pairs or program.pipeline is not None or named_lanes(program.functions.values()):
        return program
    functions = dict(program.functions)
    states: dict[str, dict[int, int]] = {MAIN: pairs}
    for name in _callers_first(functions):
        kept = {output.slot for output in program.outputs} if name == MAIN else {*functions[name].results}
        walk = _Walk(functions[name], states.get(name, {}), kept)
        functions[name] = walk.function()
        for callee, positions in walk.passed:
            called = functions[callee]
            found = {called.results[result]: called.arguments[argument] for result, argument in positions.items()}
            known = states.setdefault(callee, found)
            states[callee] = {result: argument for result, argument in known.items() if found.get(result) == argument}
    return replace(program, functions=functions)


def _callers_first(functions: Mapping[str, Function]) -> list[str]:
    callees = {
        name: sorted({str(each.args[0]) for each in function.code if each.op == "call"})
        for name, function in functions.items()
    }
    return [*TopologicalSorter(callees).static_order()][::-1]


def _views_of_ranks(function: Function) -> dict[int, int]:
    """The results of `rank.shard` and the like, which may be views of their operand."""
    code = (each for each in function.code if each.op in RANK_OPS and each.reads() and each.writes())
    return {instruction.writes()[0]: instruction.reads()[0] for instruction in code}


class _Walk:
    """One function: which slots lie in the memory of states, and when that memory is last read.

    `states` are its results that are new values of states, each with the argument that has the old one.
    """

    def __init__(self, function: Function, states: Mapping[int, int], kept: set[int]) -> None:
        self._function = function
        self._states = states
        self._owner = {argument: argument for argument in states.values()}
        """By slot in the memory of a state: the argument that had the state's old value."""
        self._views = dict(function.views) | _views_of_ranks(function)
        self._kept = {self._memory(slot) for slot in kept}
        self._last_read: dict[int, int] = {}
        for index, instruction in enumerate(function.code):
            self._last_read.update(dict.fromkeys(map(self._memory, instruction.reads()), index))
        self._shared: set[int] = set()
        """Memory that a call or a collective was given before: what came of it may still read it."""
        self._free: dict[int, set[int]] = {}
        """By index of a call: its operands whose memory it may take."""
        self.passed: list[tuple[str, dict[int, int]]] = []
        """For each call, set by `function`: by position of a result, the argument whose memory it may take."""

    def function(self) -> Function:
        """The function, with `into` on instructions."""
        code = [self._candidate(*each) for each in enumerate(self._function.code)]
        becomes = dict(self._states)
        for index in reversed(range(len(code))):
            instruction = code[index]
            if instruction.op == "call":
                positions = self._positions(index, instruction, becomes)
                self.passed.append((str(instruction.args[0]), positions))
                operands = instruction.reads()
                becomes.update({operands[argument]: self._owner[operands[argument]] for argument in positions.values()})
            if instruction.into is None:
                continue
            owner = self._owner[instruction.into]
            if becomes.get(instruction.writes()[0]) == owner:
                becomes[instruction.into] = owner
            else:
                code[index] = replace(instruction, into=None)
        return replace(self._function, code=tuple(code))

    def _positions(self, index: int, call: Instruction, becomes: Mapping[int, int]) -> dict[int, int]:
        argument_of = {self._owner[slot]: i for i, slot in enumerate(call.reads()) if slot in self._free[index]}
        results = ((i, becomes.get(slot)) for i, slot in enumerate(call.out) if slot is not None)
        return {i: argument_of[owner] for i, owner in results if owner in argument_of}

    def _candidate(self, index: int, instruction: Instruction) -> Instruction:
        """The instruction with `into` where memory and order allow it, whatever becomes of its result."""
        free = self._free_to_take(index, instruction)
        if instruction.op in OWN_OPS:
            if instruction.op == "call" or instruction.op in COLLECTIVES:
                self._free[index] = free
                self._shared.update(map(self._memory, instruction.reads()))
            return instruction
        first = instruction.args[0].index if instruction.args and isinstance(instruction.args[0], Slot) else None
        if first is None or first not in free or not self._fits(instruction, first):
            return instruction
        self._owner[instruction.writes()[0]] = self._owner[first]
        return replace(instruction, into=first)

    def _free_to_take(self, index: int, instruction: Instruction) -> set[int]:
        """The operands in the memory of a state that nothing reads after this instruction."""
        count = Counter(map(self._memory, instruction.reads()))
        return {
            slot
            for slot in instruction.reads()
            if slot in self._owner
            and count[self._memory(slot)] == 1
            and self._last_read[self._memory(slot)] == index
            and self._memory(slot) not in self._kept | self._shared
        }

    def _fits(self, instruction: Instruction, slot: int) -> bool:
        [*results] = instruction.writes()
        types = self._function.types
        return (
            len(results) == len(instruction.out) == 1
            and types[results[0]] == types[slot] is not None
            and results[0] not in self._views
            and writes_in_place(instruction.op)
        )

    def _memory(self, slot: int) -> int:
        """The slot in whose memory a view lies."""
        while slot in self._views:
            slot = self._views[slot]
        return slot
