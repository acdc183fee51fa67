"""The proof that a program is safe on all its ranks, or a counterexample: the instructions that show why it is not.

Proved, in this order:
- Slots are set, read and freed in order (`slots.py`).
- Every future is waited on exactly once, and its operand is not written to before (`frame.py`).
- All ranks of a group start the same collectives in the same order (`order.py`), on the same values (`origins.py`).
- Each receive has its send, of the same value, shape and dtype (`messages.py`); a send sends what it says
  (`payloads.py`).
- Nothing is freed or overwritten on one lane while another uses it (`lanes/order.py`).
- Happens-before over all ranks has no cycle (`deadlock.py`).
- Slots have the types that the program states (`types.py`), results those that it declares (`analysis.py`).
- Memory stays under the cap (`frame.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..errors import ProgramError
from ..lanes.names import named_lanes
from ..lanes.order import LaneFault, check_lanes
from ..program.entries import Entry
from ..program.program import Program
from .analysis import Analysis
from .collectives import Collective
from .deadlock import Deadlock, find_deadlock
from .events import Event, Message
from .groups import GroupSet, Ranks, groups_over
from .messages import first_message_mismatch
from .order import EventSequence, first_difference, first_swap
from .origins import Origins
from .payloads import check_payloads
from .queues import Backend
from .slots import check_slots
from .summary import Summary
from .types import Types
from .values import Path, Refuted
from .verdict import Counterexample, PeakMemory, Place, Verdict, place_of


@dataclass(frozen=True)
class RankClass:
    """A program and the ranks that run it: all, or those of one stage of a pipeline."""

    program: Program
    ranks: tuple[int, ...]
    stage: int | None = None

    @property
    def entry(self) -> Entry:
        """The entry of the ranks."""
        return self.program.entries[self.stage or 0]

    def by_stage(self) -> list[RankClass]:
        """One class for each stage of a pipeline, else this class; the program must be valid."""
        pipeline = self.program.pipeline
        if pipeline is None:
            return [self]
        stages: dict[int, list[int]] = {}
        for rank in self.ranks:
            stages.setdefault(self.program.mesh.coordinate(rank, (pipeline.axis,)), []).append(rank)
        return [RankClass(self.program, tuple(ranks), stage) for stage, ranks in sorted(stages.items())]


def prove(
    program: Program,
    *,
    memory_cap_bytes: int | None = None,
    types: Types = Types.DERIVED,
    backend: Backend = Backend.NCCL,
) -> Verdict:
    """Prove a program that all ranks of its mesh run. Raises ProgramError for one that is malformed.

    With stated types no meta kernel runs: for programs that were verified, or whose peak is only reported.
    """
    all_ranks = RankClass(program, tuple(range(program.mesh.ranks)))
    return prove_ranks([all_ranks], memory_cap_bytes=memory_cap_bytes, types=types, backend=backend)


def prove_ranks(
    classes: Sequence[RankClass],
    *,
    memory_cap_bytes: int | None = None,
    types: Types = Types.DERIVED,
    backend: Backend = Backend.NCCL,
) -> Verdict:
    """Prove a mesh whose ranks may run different programs, one for each class of ranks.

    `memory_cap_bytes` is the cap of each rank. What is safe under NCCL is safe under gloo, too. Raises ProgramError
    E0715 unless each rank of one mesh is in exactly one class, and ProgramError for a program that is malformed in a
    way that no counterexample shows.
    """
    _class_of(classes)
    mesh = classes[0].program.mesh
    analysis = Analysis(mesh, types)
    parts: list[RankClass] = []
    summaries: list[Summary] = []
    bad_results: list[Counterexample] = []
    for rank_class in classes:
        current = rank_class
        try:
            check_slots(rank_class.program)
            check_payloads(rank_class.program.validated)
            for stage_class in replace(rank_class, program=rank_class.program.validated).by_stage():
                current = stage_class
                summary, result = analysis.program(stage_class.program, stage_class.entry)
                parts.append(stage_class)
                summaries.append(summary)
                bad_results += [_counterexample(result, stage_class)] if result else []
                check_lanes(stage_class.program, stage_class.entry)
        except Refuted as refuted:
            return Verdict(_counterexample(refuted, current))
        except LaneFault as fault:
            return Verdict(_counterexample(Refuted(fault.code, fault.message, *fault.paths, help=fault.help), current))
    classes = parts
    proof = _Proof(classes, _class_of(classes), analysis, summaries)
    counterexample = proof.order() or proof.messages()
    deadlock = proof.deadlock() if counterexample is None else None
    is_accepted = deadlock is not None and deadlock.is_safe_under_gloo and backend is Backend.GLOO
    if deadlock is not None and not is_accepted:
        counterexample = proof.cycle(deadlock)
    counterexample = counterexample or next(iter(bad_results), None)
    peaks = tuple(proof.peak(number) for number in range(len(classes)))
    if counterexample is None and memory_cap_bytes is not None:
        counterexample = proof.over_cap(peaks, memory_cap_bytes)
    busiest = max(sequence.collectives for sequence in proof.sequences)
    messages = max(len(sequence.messages("send")) for sequence in proof.sequences)
    lanes = {lane for each in classes for lane in named_lanes(each.program.functions.values())}
    return Verdict(counterexample, peaks, busiest, messages, tuple(sorted(lanes)), is_accepted)


class _Proof:
    """The parts of the proof that need the summaries of all classes."""

    def __init__(
        self, classes: Sequence[RankClass], class_of: Ranks, analysis: Analysis, summaries: Sequence[Summary]
    ) -> None:
        self.classes = classes
        self.class_of = class_of
        self.analysis = analysis
        self.summaries = summaries
        self.sequences = [EventSequence(analysis.events_of(summary), analysis.events) for summary in summaries]
        self._origins: dict[int, Origins] = {}
        self._known_identities: dict[tuple[int, tuple[str, ...]], tuple[tuple[str, ...], ...]] = {}
        axes = sorted({axes for sequence in self.sequences for axes in sequence.axes})
        self.groups: list[GroupSet] = [groups_over(analysis.mesh, group_axes, class_of) for group_axes in axes]

    def order(self) -> Counterexample | None:
        """Two ranks of one group whose collectives differ."""
        for groups in self.groups:
            different = first_difference(groups, self.class_of.tolist(), self.sequences)
            if different is not None:
                return self._different_collectives(groups, *different)
        for groups in self.groups:
            swap = first_swap(groups, self.class_of.tolist(), partial(self._identities, groups))
            if swap is not None:
                return self._swapped_collectives(groups, *swap)
        return None

    def messages(self) -> Counterexample | None:
        """A message on which its two ranks differ."""
        mismatch = first_message_mismatch(self.analysis.mesh, self.class_of, self.sequences)
        if mismatch is None:
            return None
        source, destination = mismatch.source, mismatch.destination
        which = f"message {mismatch.number} from rank {source} to rank {destination}"
        if mismatch.sent is not None and mismatch.received is not None:
            sent, received = self._event(source, mismatch.sent), self._event(destination, mismatch.received)
            places = (self._place(destination, mismatch.received), self._place(source, mismatch.sent))
            if str(sent) == str(received):
                values = " is sent as {}, but received as {}".format(*map(_value, (sent, received)))
                return Counterexample("E0727", which + values, places, help="send and receive in one order")
            return Counterexample("E0718", f"{which} is sent as {sent}, but received as {received}", places)
        if mismatch.received is not None:
            places = (
                self._place(destination, mismatch.received),
                self._last_place(source, self._message_positions(source, "send")),
            )
            return Counterexample("E0719", f"{which} is received, but never sent", places)
        assert mismatch.sent is not None, "one side has it"
        places = (
            self._place(source, mismatch.sent),
            self._last_place(destination, self._message_positions(destination, "receive")),
        )
        return Counterexample("E0719", f"{which} is sent, but never received", places)

    def _event(self, rank: int, position: int) -> Event:
        return self.sequences[int(self.class_of[rank])].events[position]

    def _message_positions(self, rank: int, op: str) -> list[int]:
        return [position for position, _ in self.sequences[int(self.class_of[rank])].messages(op)]

    def deadlock(self) -> Deadlock | None:
        """The deadlock under the stricter rule, if any."""
        return find_deadlock(self.analysis.mesh, self.class_of, self.groups, self.sequences)

    def cycle(self, deadlock: Deadlock) -> Counterexample:
        """A cycle of ranks, each of which waits for the next."""
        cycle = deadlock.cycle
        first, second = cycle[0], cycle[1 % len(cycle)]
        places = (self._place(first.rank, first.position), self._place(second.rank, second.position))
        notes = tuple(
            f"rank {blocked.rank} waits there until {self._awaited(blocked.rank, blocked.position)}; "
            f"it {self._verb(blocked.rank, blocked.needed_position)} what another rank needs only later: "
            f"{self._place(blocked.rank, blocked.needed_position)}"
            for blocked in cycle
        )
        if deadlock.is_safe_under_gloo:
            notes += (
                "safe under gloo only, where each communicator has a queue of its own: --backend gloo accepts it",
            )
        if all(isinstance(self._event(blocked.rank, blocked.position), Collective) for blocked in cycle):
            what = f"{len(cycle)} ranks start collectives of different groups in orders that do not agree"
            return Counterexample("E0712", f"deadlock: {what}", places, notes, "start them in one order on all ranks")
        what = f"{len(cycle)} ranks wait for each other"
        return Counterexample("E0712", f"deadlock: {what}", places, notes, "send before waiting for what depends on it")

    def _awaited(self, rank: int, position: int) -> str:
        is_collective = isinstance(self._event(rank, position), Collective)
        return "all members of the group have started it" if is_collective else "its message is sent"

    def _verb(self, rank: int, position: int) -> str:
        return "starts" if isinstance(self._event(rank, position), Collective) else "sends"

    def peak(self, number: int) -> PeakMemory:
        """The peak of one class."""
        rank_class, summary = self.classes[number], self.summaries[number]
        empty = not rank_class.program.functions[summary.name].code
        place = None if empty else place_of(rank_class.program, summary.peak_at, rank_class.ranks)
        inputs = self.analysis.input_bytes(rank_class.program, rank_class.entry)
        return PeakMemory(rank_class.ranks, inputs + summary.peak_bytes, place)

    def over_cap(self, peaks: Sequence[PeakMemory], cap_bytes: int) -> Counterexample | None:
        """The first class whose peak does not fit."""
        for number, peak in enumerate(peaks):
            if peak.bytes > cap_bytes:
                return self._too_much(number, peak, cap_bytes)
        return None

    def _too_much(self, number: int, peak: PeakMemory, cap_bytes: int) -> Counterexample:
        rank_class, summary = self.classes[number], self.summaries[number]
        places = [peak.place] if peak.place else []
        notes: tuple[str, ...] = ()
        largest = self.analysis.largest_before(rank_class.program, rank_class.entry, summary.peak_at[0][1])
        if largest is not None:
            name = f"input '{largest.name}'" if largest.name else "made by the second instruction"
            notes = (f"the largest tensor that is live there has {largest.bytes:,} bytes: {name}",)
            places += [place_of(rank_class.program, largest.creator, rank_class.ranks)] if largest.creator else []
        message = f"the peak memory of a rank is {peak.bytes:,} bytes, but the cap is {cap_bytes:,}"
        return Counterexample("E0713", message, tuple(places), notes, "shard more, or recompute")

    def _different_collectives(self, groups: GroupSet, ranks: tuple[int, int], position: int) -> Counterexample:
        sequences = [self.sequences[int(self.class_of[rank])] for rank in ranks]
        positions = [sequence.positions(groups.axes) for sequence in sequences]
        counts = [len(own_positions) for own_positions in positions]
        group = f"the group over {', '.join(groups.axes)} with ranks {ranks[0]} and {ranks[1]}"
        note = f"rank {ranks[0]} starts {counts[0]} collectives in this group, rank {ranks[1]} {counts[1]}"
        if position < min(counts):
            mine, theirs = (
                sequence.events[own_positions[position]]
                for sequence, own_positions in zip(sequences, positions, strict=True)
            )
            assert isinstance(mine, Collective) and isinstance(theirs, Collective), "positions are those of collectives"
            places = tuple(
                self._place(rank, own_positions[position]) for rank, own_positions in zip(ranks, positions, strict=True)
            )
            message = f"collective {position} of {group} differs: {mine.difference(theirs)}"
            return Counterexample("E0710", message, places, (note,) if counts[0] != counts[1] else ())
        has, lacks = (0, 1) if counts[0] > counts[1] else (1, 0)
        first = self._first_source_difference(ranks, positions)
        if first is not None:
            message = f"rank {ranks[lacks]} never starts a collective of {group}; the source lines differ from here on"
            places = tuple(
                self._place(rank, own_positions[first]) for rank, own_positions in zip(ranks, positions, strict=True)
            )
            return Counterexample("E0711", message, places, (note,))
        places = (self._place(ranks[has], positions[has][position]), self._last_place(ranks[lacks], positions[lacks]))
        message = f"rank {ranks[lacks]} never starts collective {position} of {group}"
        return Counterexample("E0711", message, places, (note,))

    def _identities(self, groups: GroupSet, rank: int) -> tuple[tuple[str, ...], ...]:
        """The data-flow identities of a rank's collectives in a group, in order."""
        number = int(self.class_of[rank])
        if (number, groups.axes) not in self._known_identities:
            program, summary = self.classes[number].program, self.summaries[number]
            origins = self._origins.setdefault(number, Origins(program))
            positions = self.sequences[number].positions(groups.axes)
            self._known_identities[number, groups.axes] = tuple(
                origins.identity(summary.events.path(position)) for position in positions
            )
        return self._known_identities[number, groups.axes]

    def _swapped_collectives(
        self, groups: GroupSet, ranks: tuple[int, int], indices: tuple[int, int]
    ) -> Counterexample:
        positions = [self.sequences[int(self.class_of[rank])].positions(groups.axes) for rank in ranks]
        message = (
            f"collective {indices[0]} of rank {ranks[0]} in the group over {', '.join(groups.axes)} is collective "
            f"{indices[1]} of rank {ranks[1]}: shapes match, but each result mixes the values of both collectives"
        )
        places = tuple(
            self._place(rank, own_positions[index])
            for rank, own_positions, index in zip(ranks, positions, indices, strict=True)
        )
        return Counterexample("E0717", message, places, help="start them in one order on all ranks")

    def _first_source_difference(self, ranks: tuple[int, int], positions: Sequence[Sequence[int]]) -> int | None:
        """The index where two equal sequences, of which one may be longer, first differ in source lines; else None."""
        for index, pair in enumerate(zip(*positions, strict=False)):
            mine, theirs = (self._place(rank, position).location for rank, position in zip(ranks, pair, strict=True))
            if mine != theirs:
                return index
        return None

    def _place(self, rank: int, position: int) -> Place:
        """The instruction of the event at `position` of a rank."""
        number = int(self.class_of[rank])
        return place_of(self.classes[number].program, self.summaries[number].events.path(position), (rank,))

    def _last_place(self, rank: int, positions: Sequence[int]) -> Place:
        """The last of the events at `positions` of a rank; without any, its last instruction."""
        if positions:
            return self._place(rank, positions[-1])
        program = self.classes[int(self.class_of[rank])].program
        name = self.summaries[int(self.class_of[rank])].name
        last: Path = ((name, len(program.functions[name].code) - 1),)
        return place_of(program, last, (rank,))


def _value(message: Event) -> str:
    assert isinstance(message, Message), "it was found among the messages"
    return f"'{message.carries}'" if message.carries else "a tensor without a name"


def _counterexample(refuted: Refuted, rank_class: RankClass) -> Counterexample:
    places = tuple(place_of(rank_class.program, path, rank_class.ranks) for path in refuted.paths)
    return Counterexample(refuted.code, refuted.message, places, help=refuted.help)


def _class_of(classes: Sequence[RankClass]) -> Ranks:
    """(ranks,): the class of every rank. Raises ProgramError E0715."""
    meshes = {rank_class.program.mesh for rank_class in classes}
    if len(meshes) != 1:
        raise ProgramError("E0715", f"the programs have {len(meshes)} different meshes, expected one")
    [mesh] = meshes
    ranks = sorted(rank for rank_class in classes for rank in rank_class.ranks)
    if ranks != list(range(mesh.ranks)) or not all(rank_class.ranks for rank_class in classes):
        raise ProgramError("E0715", f"each of the {mesh.ranks} ranks of the mesh must run one program, found {ranks}")
    class_of = np.empty(mesh.ranks, np.int64)
    for number, rank_class in enumerate(classes):
        class_of[list(rank_class.ranks)] = number
    return class_of
