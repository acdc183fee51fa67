"""Happens-before between the lanes of a rank: what one lane uses, no other frees, overwrites or reorders too early.

The model: a thread issues instructions in program order, each to its lane. A lane is in order. An instruction waits for
those that made the values it reads, whatever their lanes; a `comm.wait` for its collective. A result of an entry is
read on the compute lane. Nothing else orders two lanes.

Proved, where instructions name lanes:
- Memory is given back only after all that use it: its last reference (a slot, a view's slot, or the future of a
  collective that reads it) goes at an instruction that all its uses happen before. This covers frees, slots that are
  written again, and what is left at the end of a function.
- So is the memory of a state that takes a new value.
- The collectives of one group are started in one order: each happens before the next.

The whole entry is walked, with all calls, because what precedes a call decides what is ordered inside. A value has a
clock: by lane, how many of its instructions happen before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ProgramError
from ..program.arguments import Slot
from ..program.entries import Entry
from ..program.mesh import RankMesh
from ..program.ops import COALESCED, COLLECTIVES
from ..program.program import Program
from ..program.records import Function, Instruction
from .aliases import aliased_slots
from .names import COMPUTE, lane_of, named_lanes

Path = tuple[tuple[str, int], ...]
"""The path to an instruction: (function, index) pairs, first the calls that lead to it."""
Clock = dict[str, int]
"""By lane: the number of its instructions that happen before."""

MOST_STEPS = 1 << 20
"""The most instructions that are walked: some seconds."""


class LaneFault(Exception):
    """Two instructions of different lanes that must be ordered, and are not: the one too early first."""

    def __init__(self, code: str, message: str, *paths: Path, help: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.paths = paths
        self.help = help


def check_lanes(program: Program, entry: Entry) -> None:
    """Raise LaneFault for the first two instructions of an entry that must be ordered and are not.

    Raises ProgramError E0726 where there are too many to walk. Does nothing where no instruction names a lane.
    """
    if named_lanes(program.functions.values()):
        _Walk(program.functions, program.mesh).entry(entry)


@dataclass(eq=False)
class _Storage:
    """Memory, with the number of its references and the last use on each lane."""

    holders: int = 0
    uses: dict[str, tuple[int, Path]] = field(default_factory=dict)


@dataclass(eq=False)
class _Value:
    """The value of a slot: the memory that it keeps, and what happens before it is ready."""

    storages: tuple[_Storage, ...]
    ready: Clock
    result: tuple[_Storage, ...] = ()
    """Of a future: the memory of its tensor."""


@dataclass(frozen=True)
class _Event:
    """An instruction on its lane, and what happens before it ends."""

    lane: str
    clock: Clock
    path: Path


class _Walk:
    """The state of a rank while its instructions are issued."""

    def __init__(self, functions: Mapping[str, Function], mesh: RankMesh) -> None:
        self._functions = functions
        self._mesh = mesh
        self._lanes: dict[str, Clock] = {}
        self._started: dict[tuple[str, ...], tuple[str, int, Path]] = {}
        """By group: the lane, number and place of its last collective."""
        self._steps = 0

    def entry(self, entry: Entry) -> None:
        """Walk an entry. Its inputs and results are the caller's, who keeps them."""
        function = self._functions[entry.name]
        slots = {slot: _Value((_Storage(holders=2),), {}) for slot in function.arguments}
        split = len(function.code) if function.backward_at is None else function.backward_at
        self._code(entry.name, function.code, range(split), slots, ())
        for output in entry.forward_outputs:
            _hold(slots[output.slot])
        self._code(entry.name, function.code, range(split, len(function.code)), slots, ())

    def _code(
        self, name: str, code: Sequence[Instruction], indices: range, slots: dict[int, _Value], path: Path
    ) -> None:
        for index in indices:
            self._step(code[index], slots, (*path, (name, index)))

    def _function(self, name: str, arguments: Sequence[_Value], path: Path) -> list[_Value]:
        """Walk a callee, which gets a reference to each argument; returns its results, with a reference to each."""
        function = self._functions[name]
        slots = dict(zip(function.arguments, arguments, strict=True))
        self._code(name, function.code, range(len(function.code)), slots, path)
        results = [slots[slot] for slot in function.results]
        for value in results:
            _hold(value)
        end = _Event(COMPUTE, self._lanes.get(COMPUTE, {}), (*path, (name, max(len(function.code) - 1, 0))))
        for value in slots.values():
            self._release(value, end, f'left at the end of "{name}"')
        return results

    def _step(self, instruction: Instruction, slots: dict[int, _Value], path: Path) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise ProgramError(
                "E0726",
                f"the order of lanes cannot be proved: a rank runs more than {MOST_STEPS:,} instructions in a step",
                help="compile with fewer microbatches, or without lanes",
            )
        if instruction.op == "call":
            event, results = self._call(instruction, slots, path)
        else:
            event = self._issue(instruction, slots, path)
            results = self._results(instruction, slots, event)
            if instruction.into is not None:
                for storage in slots[instruction.into].storages:
                    _refuse_early(storage, event, "given a new value of a state")
            for value in results:
                _hold(value)
        for index, value in enumerate(results):
            slot = instruction.out[index] if index < len(instruction.out) else None
            old = value if slot is None else slots.pop(slot, None)
            if slot is not None:
                slots[slot] = value
            if old is not None:
                self._release(old, event, "dropped" if slot is None else f"given up with slot {slot}, which is written")
        for slot in instruction.free:
            if slot in slots:
                self._release(slots.pop(slot), event, f"freed with slot {slot}")

    def _call(self, instruction: Instruction, slots: dict[int, _Value], path: Path) -> tuple[_Event, list[_Value]]:
        """Walk a callee. What the call frees, the caller gives up before, so that the callee has the last reference."""
        name, refs = instruction.args
        operands = [ref.index for ref in refs if isinstance(ref, Slot)] if isinstance(refs, list | tuple) else []
        values = [slots[slot] for slot in operands]
        for value in values:
            _hold(value)
        before = _Event(COMPUTE, self._lanes.get(COMPUTE, {}), path)
        for slot in instruction.free:
            if slot in operands and slot not in instruction.out and slot in slots:
                self._release(slots.pop(slot), before, f"freed with slot {slot}")
        results = self._function(str(name), values, path)
        return _Event(COMPUTE, self._lanes.get(COMPUTE, {}), path), results

    def _issue(self, instruction: Instruction, slots: Mapping[int, _Value], path: Path) -> _Event:
        """Put an instruction on its lane, behind what it reads, and note its uses."""
        lane = lane_of(instruction)
        clock = dict(self._lanes.get(lane, ()))
        reads = [slots[slot] for slot in instruction.reads()]
        for value in reads:
            for other, number in value.ready.items():
                clock[other] = max(number, clock.get(other, 0))
        number = clock[lane] = clock.get(lane, 0) + 1
        self._lanes[lane] = clock
        for storage in (storage for value in reads for storage in value.storages):
            storage.uses[lane] = (number, path)
        event = _Event(lane, clock, path)
        if instruction.op in COLLECTIVES:
            self._one_order(instruction, event)
        return event

    def _one_order(self, instruction: Instruction, event: _Event) -> None:
        """Refuse a collective that the one before it in its group does not happen before."""
        axes = instruction.kwargs.get("axes")
        names = [str(axis) for axis in axes] if isinstance(axes, list | tuple) else []
        group = tuple(axis for axis in names if self._mesh.sizes[axis] > 1)
        if not group:
            return
        lane, number, path = self._started.get(group, (event.lane, 0, ()))
        if number > event.clock.get(lane, 0):
            raise LaneFault(
                "E0730",
                f'two collectives over {", ".join(group)} are on the lanes "{event.lane}" and "{lane}", '
                "and neither happens before the other: ranks may run them in different orders",
                event.path, path, help="put the collectives of a group on one lane",
            )  # fmt: skip
        self._started[group] = (event.lane, event.clock[event.lane], event.path)

    def _results(self, instruction: Instruction, slots: Mapping[int, _Value], event: _Event) -> list[_Value]:
        """The values that an instruction makes, without a reference yet."""
        use = (event.clock[event.lane], event.path)
        reads = [slots[slot] for slot in instruction.reads()]
        if instruction.op == "comm.wait":
            [future] = reads
            return [_Value(future.result or future.storages, event.clock)]
        aliased = aliased_slots(instruction, self._mesh) if instruction.into is None else (instruction.into,)
        shared = tuple(s for slot in aliased for s in slots[slot].storages)
        storages = [shared or (_Storage(uses={event.lane: use}),) for _ in instruction.out]
        if instruction.op in COLLECTIVES or instruction.op == "comm.receive_start":
            if instruction.op in COALESCED and "reduce" in instruction.kwargs:
                storages = [storages[0]] * len(storages)
            kept = tuple(s for value in reads for s in value.storages)
            all_results = tuple(dict.fromkeys(s for each in storages for s in each))
            return [_Value((*kept, *all_results), event.clock, own) for own in storages]
        return [_Value(own, event.clock) for own in storages]

    def _release(self, value: _Value, event: _Event, how: str) -> None:
        """Drop one reference; refuse to give memory back before all its uses. `how` says what becomes of it."""
        for storage in value.storages:
            storage.holders -= 1
            if not storage.holders:
                _refuse_early(storage, event, how)


def _refuse_early(storage: _Storage, event: _Event, how: str) -> None:
    """Raise LaneFault where a use of a memory does not happen before an event that takes it."""
    for lane, (number, path) in storage.uses.items():
        if number > event.clock.get(lane, 0):
            raise LaneFault(
                "E0729",
                f'memory is {how} on lane "{event.lane}" while lane "{lane}" may still use it',
                event.path, path,
                help=f'put it behind an instruction that reads a result of lane "{lane}" made since then',
            )  # fmt: skip


def _hold(value: _Value) -> None:
    for storage in value.storages:
        storage.holders += 1
