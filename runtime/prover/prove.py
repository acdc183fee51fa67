"""Is a program safe? It is proved so for all its ranks, or two of its instructions show why it is not.

Proved, in this order: slots are set, read and freed in order (`slots.py`); every future is waited on exactly once, and
what it reads is left alone until then (`frame.py`); all ranks of a group see the same collectives in the same order
(`order.py`), and the same values in each (`origins.py`); each receive has its send of the same shape and dtype
(`messages.py`); happens-before over all ranks has no cycle (`deadlock.py`);
results have the shapes that the program says; memory stays under the cap (`frame.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..errors import ProgramError
from ..program.entries import Entry
from ..program.program import Program
from .analysis import Analysis
from .collectives import Collective
from .deadlock import find_cycle
from .events import Event
from .groups import Groups, Ranks, groups_over
from .messages import first_misfit
from .order import Sequences, first_difference, first_exchange
from .origins import Origins
from .slots import check_slots
from .summary import Summary
from .values import Path, Refuted
from .verdict import Counterexample, PeakMemory, Place, Verdict, place_of


@dataclass(frozen=True)
class RankClass:
    """A program and the ranks that run it, of a pipeline all or those of one stage."""

    program: Program
    ranks: tuple[int, ...]
    stage: int | None = None

    @property
    def entry(self) -> Entry:
        """Where they begin."""
        return self.program.entries[self.stage or 0]

    def by_stage(self) -> list[RankClass]:
        """In a pipeline the ranks of each stage, else all; the program must be valid."""
        turns = self.program.pipeline
        if turns is None:
            return [self]
        stages: dict[int, list[int]] = {}
        for rank in self.ranks:
            stages.setdefault(self.program.mesh.coordinate(rank, (turns.axis,)), []).append(rank)
        return [RankClass(self.program, tuple(ranks), stage) for stage, ranks in sorted(stages.items())]


def prove(program: Program, *, memory_cap_bytes: int | None = None) -> Verdict:
    """Prove a program that all ranks of its mesh run; raises ProgramError for one that is malformed otherwise."""
    everyone = RankClass(program, tuple(range(program.mesh.ranks)))
    return prove_ranks([everyone], memory_cap_bytes=memory_cap_bytes)


def prove_ranks(classes: Sequence[RankClass], *, memory_cap_bytes: int | None = None) -> Verdict:
    """Prove a mesh on which different ranks run different programs, one for each distinct kind of rank.

    The cap is for each rank, in bytes. Raises ProgramError (E0715) unless every rank of one mesh is in one class, and
    for a program that is malformed in a way that the proof is not about.
    """
    _class_of(classes)
    mesh = classes[0].program.mesh
    analysis = Analysis(mesh)
    parts: list[RankClass] = []
    summaries: list[Summary] = []
    wrong: list[Counterexample] = []
    for given in classes:
        guilty = given
        try:
            check_slots(given.program)
            for each in replace(given, program=given.program.validated).by_stage():
                guilty = each
                summary, result = analysis.program(each.program, each.entry)
                parts.append(each)
                summaries.append(summary)
                wrong += [_counterexample(result, each)] if result else []
        except Refuted as refuted:
            return Verdict(_counterexample(refuted, guilty))
    classes = parts
    proof = _Proof(classes, _class_of(classes), analysis, summaries)
    found = proof.order() or proof.messages() or proof.cycle() or next(iter(wrong), None)
    peaks = tuple(proof.peak(number) for number in range(len(classes)))
    if found is None and memory_cap_bytes is not None:
        found = proof.over(peaks, memory_cap_bytes)
    busiest = max(each.collectives for each in proof.sequences)
    return Verdict(found, peaks, busiest, max(len(each.messages("send")) for each in proof.sequences))


class _Proof:
    """What is known of every class once its functions are summarised."""

    def __init__(
        self, classes: Sequence[RankClass], class_of: Ranks, analysis: Analysis, summaries: Sequence[Summary]
    ) -> None:
        self.classes = classes
        self.class_of = class_of
        self.analysis = analysis
        self.summaries = summaries
        self.sequences = [Sequences(each.events, analysis.events) for each in summaries]
        self._origins: dict[int, Origins] = {}
        self._named: dict[tuple[int, tuple[str, ...]], tuple[tuple[str, ...], ...]] = {}
        axes = sorted({axes for each in self.sequences for axes in each.axes})
        self.groups: list[Groups] = [groups_over(analysis.mesh, each, class_of) for each in axes]

    def order(self) -> Counterexample | None:
        """Two ranks of one group whose collectives differ."""
        for groups in self.groups:
            different = first_difference(groups, self.class_of.tolist(), self.sequences)
            if different is not None:
                return self._differ(groups, *different)
        for groups in self.groups:
            exchange = first_exchange(groups, self.class_of.tolist(), partial(self._identities, groups))
            if exchange is not None:
                return self._exchanged(groups, *exchange)
        return None

    def messages(self) -> Counterexample | None:
        """A message on which its two ranks do not agree."""
        found = first_misfit(self.analysis.mesh, self.class_of, self.sequences)
        if found is None:
            return None
        source, destination = found.source, found.destination
        which = f"message {found.number} from rank {source} to rank {destination}"
        if found.sent is not None and found.received is not None:
            sent, received = self._event(source, found.sent), self._event(destination, found.received)
            places = (self._start(destination, found.received), self._start(source, found.sent))
            return Counterexample("E0718", f"{which} is {sent} when it is sent, {received} when it is received", places)
        if found.received is not None:
            places = (self._start(destination, found.received), self._end(source, self._sides(source, "send")))
            return Counterexample("E0719", f"{which} is waited for, and never sent", places)
        assert found.sent is not None, "one side has it"
        places = (self._start(source, found.sent), self._end(destination, self._sides(destination, "receive")))
        return Counterexample("E0719", f"{which} is sent, and never received", places)

    def _event(self, rank: int, position: int) -> Event:
        return self.sequences[int(self.class_of[rank])].events[position]

    def _sides(self, rank: int, op: str) -> list[int]:
        return [at for at, _ in self.sequences[int(self.class_of[rank])].messages(op)]

    def cycle(self) -> Counterexample | None:
        """A cycle of ranks, each of which would wait for the next."""
        stuck = find_cycle(self.analysis.mesh, self.class_of, self.groups, self.sequences)
        if not stuck:
            return None
        first, second = stuck[0], stuck[1 % len(stuck)]
        places = (self._start(first.rank, first.at), self._start(second.rank, second.at))
        notes = tuple(
            f"rank {each.rank} stands there until {self._what_comes(each.rank, each.at)}, and "
            f"{self._how_later(each.rank, each.wanted)} what is waited for: {self._start(each.rank, each.wanted)}"
            for each in stuck
        )
        if all(isinstance(self._event(each.rank, each.at), Collective) for each in stuck):
            what = f"{len(stuck)} ranks start collectives of different groups in orders that do not agree"
            return Counterexample("E0712", f"deadlock: {what}", places, notes, "start them in one order on all ranks")
        what = f"{len(stuck)} ranks wait for each other"
        return Counterexample("E0712", f"deadlock: {what}", places, notes, "send before waiting for what depends on it")

    def _what_comes(self, rank: int, position: int) -> str:
        is_collective = isinstance(self._event(rank, position), Collective)
        return "all members come" if is_collective else "what it receives is sent"

    def _how_later(self, rank: int, position: int) -> str:
        is_collective = isinstance(self._event(rank, position), Collective)
        return "starts only later" if is_collective else "sends only later"

    def peak(self, number: int) -> PeakMemory:
        """The peak of one class."""
        each, summary = self.classes[number], self.summaries[number]
        empty = not each.program.functions[summary.name].code
        place = None if empty else place_of(each.program, summary.peak_at, each.ranks)
        inputs = self.analysis.input_bytes(each.program, each.entry)
        return PeakMemory(each.ranks, inputs + summary.peak_bytes, place)

    def over(self, peaks: Sequence[PeakMemory], cap_bytes: int) -> Counterexample | None:
        """The first class whose peak does not fit."""
        for number, peak in enumerate(peaks):
            if peak.bytes > cap_bytes:
                return self._too_much(number, peak, cap_bytes)
        return None

    def _too_much(self, number: int, peak: PeakMemory, cap_bytes: int) -> Counterexample:
        each, summary = self.classes[number], self.summaries[number]
        places = [peak.place] if peak.place else []
        notes: tuple[str, ...] = ()
        largest = self.analysis.largest_before(each.program, each.entry, summary.peak_at[0][1])
        if largest is not None:
            name = f"input '{largest.name}'" if largest.name else "made by the second instruction"
            notes = (f"the largest tensor that is live there takes {largest.bytes:,} bytes: {name}",)
            places += [place_of(each.program, largest.made, each.ranks)] if largest.made else []
        message = f"the peak is {peak.bytes:,} bytes a rank, and the cap is {cap_bytes:,}"
        return Counterexample("E0713", message, tuple(places), notes, "shard more, or recompute")

    def _differ(self, groups: Groups, ranks: tuple[int, int], at: int) -> Counterexample:
        found = [self.sequences[int(self.class_of[rank])] for rank in ranks]
        positions = [each.positions(groups.axes) for each in found]
        counts = [len(each) for each in positions]
        group = f"the group over {', '.join(groups.axes)} with ranks {ranks[0]} and {ranks[1]}"
        note = f"rank {ranks[0]} starts {counts[0]} collectives in this group, rank {ranks[1]} {counts[1]}"
        if at < min(counts):
            mine, theirs = (each.events[position[at]] for each, position in zip(found, positions, strict=True))
            assert isinstance(mine, Collective) and isinstance(theirs, Collective), "positions are those of collectives"
            places = tuple(self._start(rank, each[at]) for rank, each in zip(ranks, positions, strict=True))
            message = f"collective {at} of {group} differs: {mine.difference(theirs)}"
            return Counterexample("E0710", message, places, (note,) if counts[0] != counts[1] else ())
        has, lacks = (0, 1) if counts[0] > counts[1] else (1, 0)
        first = self._first_other_source(ranks, positions)
        if first is not None:
            message = f"a collective of {group} is never started by rank {ranks[lacks]}; sources differ from here on"
            places = tuple(self._start(rank, each[first]) for rank, each in zip(ranks, positions, strict=True))
            return Counterexample("E0711", message, places, (note,))
        places = (self._start(ranks[has], positions[has][at]), self._end(ranks[lacks], positions[lacks]))
        message = f"collective {at} of {group} is never started by rank {ranks[lacks]}"
        return Counterexample("E0711", message, places, (note,))

    def _identities(self, groups: Groups, rank: int) -> tuple[tuple[str, ...], ...]:
        """What tells the collectives of a rank in a group apart, beside their shapes."""
        number = int(self.class_of[rank])
        if (number, groups.axes) not in self._named:
            program, summary = self.classes[number].program, self.summaries[number]
            origins = self._origins.setdefault(number, Origins(program))
            positions = self.sequences[number].positions(groups.axes)
            self._named[number, groups.axes] = tuple(origins.of(summary.path(at)) for at in positions)
        return self._named[number, groups.axes]

    def _exchanged(self, groups: Groups, ranks: tuple[int, int], at: tuple[int, int]) -> Counterexample:
        positions = [self.sequences[int(self.class_of[rank])].positions(groups.axes) for rank in ranks]
        message = (
            f"rank {ranks[0]} starts as collective {at[0]} of the group over {', '.join(groups.axes)} what rank "
            f"{ranks[1]} starts as collective {at[1]}: they fit together, but each gets a mixture of the two"
        )
        places = tuple(self._start(rank, each[n]) for rank, each, n in zip(ranks, positions, at, strict=True))
        return Counterexample("E0717", message, places, help="start them in one order on all ranks")

    def _first_other_source(self, ranks: tuple[int, int], positions: Sequence[Sequence[int]]) -> int | None:
        """Where two sequences that are equal as far as both go first come from other source lines; None if nowhere."""
        for at, pair in enumerate(zip(*positions, strict=False)):
            mine, theirs = (self._start(rank, position).location for rank, position in zip(ranks, pair, strict=True))
            if mine != theirs:
                return at
        return None

    def _start(self, rank: int, position: int) -> Place:
        """The instruction of event number `position` of a rank."""
        number = int(self.class_of[rank])
        return place_of(self.classes[number].program, self.summaries[number].path(position), (rank,))

    def _end(self, rank: int, positions: Sequence[int]) -> Place:
        """The last collective that a rank starts in a group, else its last instruction."""
        if positions:
            return self._start(rank, positions[-1])
        program = self.classes[int(self.class_of[rank])].program
        name = self.summaries[int(self.class_of[rank])].name
        last: Path = ((name, len(program.functions[name].code) - 1),)
        return place_of(program, last, (rank,))


def _counterexample(refuted: Refuted, each: RankClass) -> Counterexample:
    places = tuple(place_of(each.program, path, each.ranks) for path in refuted.paths)
    return Counterexample(refuted.code, refuted.message, places, help=refuted.help)


def _class_of(classes: Sequence[RankClass]) -> Ranks:
    """(ranks,): the class of every rank."""
    meshes = {each.program.mesh for each in classes}
    if len(meshes) != 1:
        raise ProgramError("E0715", f"the programs are for {len(meshes)} different meshes; one is needed")
    [mesh] = meshes
    ranks = sorted(rank for each in classes for rank in each.ranks)
    if ranks != list(range(mesh.ranks)) or not all(each.ranks for each in classes):
        raise ProgramError("E0715", f"each of the {mesh.ranks} ranks of the mesh must run one program, found {ranks}")
    class_of = np.empty(mesh.ranks, np.int64)
    for number, each in enumerate(classes):
        class_of[list(each.ranks)] = number
    return class_of
