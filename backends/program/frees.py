"""Which instruction frees each slot: its last user, or where instructions name lanes, one that all users precede.

Happens-before between lanes is that of `runtime/lanes/order.py`, within one function: a lane is in order, and an
instruction follows those that made what it reads. Slots that may share memory, such as a tensor's and its view's, are
freed together. A slot that no instruction may free is left set until the function ends. The prover, which sees what
precedes a call, judges the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...runtime.lanes.aliases import aliased_slots
from ...runtime.lanes.names import lane_of, named_lanes
from ...runtime.program.mesh import RankMesh
from ...runtime.program.ops import COLLECTIVES
from ...runtime.program.records import Function, Instruction

Use = tuple[str, int]
"""A lane, and the number of its instruction there."""


def with_frees(
    code: Sequence[Instruction], arguments: Sequence[int], results: Sequence[int], mesh: RankMesh
) -> list[Instruction]:
    """The instructions of a function with the slots that each frees; the function returns those in `results`."""
    last_use: dict[int, int] = dict.fromkeys(arguments, -1)
    for index, instruction in enumerate(code):
        for slot in (*instruction.reads(), *instruction.writes()):
            last_use[slot] = index
    if named_lanes([Function(0, (), (), tuple(code))]):
        last_use = dict(_behind_all_users(code, last_use, {*results}, mesh))
    frees: list[list[int]] = [[] for _ in code]
    for slot, index in last_use.items():
        if index >= 0 and slot not in results:
            frees[index].append(slot)
    return [replace(each, free=tuple(sorted(free))) for each, free in zip(code, frees, strict=True)]


def _behind_all_users(
    code: Sequence[Instruction], last_use: dict[int, int], results: set[int], mesh: RankMesh
) -> Iterator[tuple[int, int]]:
    """(slot, index) of the first instruction from the last use on that all uses of the slot's memory happen before.

    A collective uses its operands until its wait. Where that is in another function, only a user of the slot frees it.
    """
    clocks, groups = list(_clocks(code)), _sharing(code, mesh)
    uses: dict[int, set[Use]] = {}
    users: dict[int, list[int]] = {}
    reading: dict[int, set[int]] = {}
    for index, instruction in enumerate(code):
        lane = lane_of(instruction)
        touched = {groups.get(slot, slot) for slot in (*instruction.reads(), *instruction.writes())}
        if instruction.op in COLLECTIVES:
            operands = {groups.get(slot, slot) for slot in instruction.reads()}
            reading.update(dict.fromkeys(instruction.writes(), operands))
        elif instruction.op == "comm.wait":
            touched |= reading.pop(instruction.reads()[0], set())
        for group in touched:
            uses.setdefault(group, set()).add((lane, clocks[index][lane]))
            users.setdefault(group, []).append(index)
    kept = {groups.get(slot, slot) for slot in results}
    waited_elsewhere = set().union(*reading.values())
    for slot in last_use:
        group = groups.get(slot, slot)
        if group not in users:
            continue
        last = users[group][-1]
        places = [last] if group in waited_elsewhere else range(last, len(code))
        if group in kept:
            yield slot, last
            continue
        index = next((i for i in places if all(clocks[i].get(lane, 0) >= number for lane, number in uses[group])), -1)
        if index >= 0:
            yield slot, index


def _clocks(code: Sequence[Instruction]) -> Iterator[dict[str, int]]:
    """By instruction: for each lane, how many of its instructions have ended when this one has."""
    lanes: dict[str, dict[str, int]] = {}
    ready: dict[int, dict[str, int]] = {}
    for instruction in code:
        lane = lane_of(instruction)
        clock = dict(lanes.get(lane, ()))
        for slot in instruction.reads():
            for other, number in ready.get(slot, {}).items():
                clock[other] = max(number, clock.get(other, 0))
        clock[lane] = clock.get(lane, 0) + 1
        lanes[lane] = clock
        ready.update(dict.fromkeys(instruction.writes(), clock))
        yield clock


def _sharing(code: Sequence[Instruction], mesh: RankMesh) -> dict[int, int]:
    """By slot: one slot that stands for all that may share its memory."""
    group: dict[int, int] = {}
    for instruction in code:
        shared = aliased_slots(instruction, mesh)
        for slot in instruction.writes() if shared else ():
            for other in shared:
                old, new = group.get(slot, slot), group.get(other, other)
                group |= {slot: new, other: new, **{each: new for each, root in group.items() if root == old}}
    return group
