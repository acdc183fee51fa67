"""Faults planted in recorded logs, drawn from a seed: each breaks an order that the log otherwise has.

Places whose change leaves everything in order, such as a wait that another one makes needless, are not drawn: `planted`
keeps what a plain reading of the changed log, pairs of work by reachability in a graph, says is out of order. The proof
computes with clocks and never builds that graph.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import networkx as nx
from stretto.backends.cuda.stream_log import (
    Allocate,
    BeginCapture,
    EndCapture,
    Entry,
    Free,
    HostWork,
    Launch,
    Record,
    Wait,
)

Log = list[Entry]
Logs = list[Log]
Change = Callable[[random.Random, Logs], Logs | None]


def _with(logs: Logs, rank: int, log: Log) -> Logs:
    return [log if number == rank else each for number, each in enumerate(logs)]


def _positions(log: Log, *kinds: type) -> list[int]:
    return [position for position, entry in enumerate(log) if isinstance(entry, kinds)]


def _drawn(draw: random.Random, logs: Logs, *kinds: type) -> tuple[int, int] | None:
    places = [(rank, position) for rank, log in enumerate(logs) for position in _positions(log, *kinds)]
    return draw.choice(places) if places else None


def _without(log: Log, position: int) -> Log:
    return [*log[:position], *log[position + 1 :]]


def _moved(log: Log, position: int, to: int) -> Log:
    rest = _without(log, position)
    return [*rest[:to], log[position], *rest[to:]]


# Events


def drop_a_wait(draw: random.Random, logs: Logs) -> Logs | None:
    """A stream no longer waits."""
    place = _drawn(draw, logs, Wait)
    return place and _with(logs, place[0], _without(logs[place[0]], place[1]))


def wait_behind_the_reader(draw: random.Random, logs: Logs) -> Logs | None:
    """A stream waits only behind its next work."""
    place = _drawn(draw, logs, Wait)
    if place is None:
        return None
    rank, position = place
    log, stream = logs[rank], logs[rank][position].stream
    after = [p for p in _positions(log, Launch, HostWork) if p > position and log[p].stream == stream]
    return _with(logs, rank, _moved(log, position, after[0])) if after else None


def record_too_early(draw: random.Random, logs: Logs) -> Logs | None:
    """An event marks what comes before the work that it should mark."""
    place = _drawn(draw, logs, Record)
    if place is None:
        return None
    rank, position = place
    log, stream = logs[rank], logs[rank][position].stream
    before = [p for p in _positions(log, Launch, HostWork) if p < position and log[p].stream == stream]
    return _with(logs, rank, _moved(log, position, before[-1])) if before else None


def record_on_another_stream(draw: random.Random, logs: Logs) -> Logs | None:
    """An event marks the work of another stream."""
    place = _drawn(draw, logs, Record)
    if place is None:
        return None
    rank, position = place
    log = logs[rank]
    others = sorted({entry.stream for entry in log if isinstance(entry, Launch)} - {log[position].stream})
    if not others:
        return None
    return _with(
        logs, rank, [*log[:position], replace(log[position], stream=draw.choice(others)), *log[position + 1 :]]
    )


# Communicators


def swap_two_works(draw: random.Random, logs: Logs) -> Logs | None:
    """One rank launches two different communications of one communicator in each other's place."""
    rank = draw.randrange(len(logs))
    log = logs[rank]
    by_name: dict[str, list[int]] = {}
    for position in _positions(log, Launch, HostWork):
        if log[position].communication is not None:
            by_name.setdefault(log[position].communication.communicator, []).append(position)
    pairs = [pair for talks in by_name.values() for pair in pairwise(talks)]
    pairs = [(a, b) for a, b in pairs if log[a].communication != log[b].communication]
    if not pairs:
        return None
    first, second = draw.choice(pairs)
    changed = list(log)
    changed[first] = replace(log[first], communication=log[second].communication, op=log[second].op)
    changed[second] = replace(log[second], communication=log[first].communication, op=log[first].op)
    return _with(logs, rank, changed)


def drop_a_work(draw: random.Random, logs: Logs) -> Logs | None:
    """One rank leaves out a communication, and computes on."""
    return _changed_talk(draw, logs, lambda work: replace(work, communication=None))


def change_a_work(draw: random.Random, logs: Logs) -> Logs | None:
    """One rank sends another shape."""
    return _changed_talk(
        draw, logs, lambda work: replace(work, communication=replace(work.communication, what="another shape"))
    )


def leave_a_member_out(draw: random.Random, logs: Logs) -> Logs | None:
    """One rank takes the group for one with other members."""

    def reversed_members(work: Launch) -> Launch:
        assert work.communication is not None
        return replace(work, communication=replace(work.communication, members=work.communication.members[::-1]))

    return _changed_talk(draw, logs, reversed_members)


def _changed_talk(draw: random.Random, logs: Logs, change: Callable[[Launch], Launch]) -> Logs | None:
    rank = draw.randrange(len(logs))
    log = logs[rank]
    talks = [p for p in _positions(log, Launch, HostWork) if log[p].communication is not None]
    if not talks:
        return None
    position = draw.choice(talks)
    return _with(logs, rank, [*log[:position], change(log[position]), *log[position + 1 :]])


# Memory


def free_before_the_last_use(draw: random.Random, logs: Logs) -> Logs | None:
    """Memory is given back before the last work that reads it."""
    place = _drawn(draw, logs, Free)
    if place is None:
        return None
    rank, position = place
    log, block = logs[rank], logs[rank][position].block
    uses = [p for p in _positions(log, Launch, HostWork) if p < position and block in (*log[p].reads, *log[p].writes)]
    return _with(logs, rank, _moved(log, position, uses[-1])) if uses else None


def free_twice(draw: random.Random, logs: Logs) -> Logs | None:
    """Memory is given back again."""
    place = _drawn(draw, logs, Free)
    return place and _with(logs, place[0], [*logs[place[0]], logs[place[0]][place[1]]])


def take_memory_in_use(draw: random.Random, logs: Logs) -> Logs | None:
    """The allocator gives memory that another block still has."""
    place = _drawn(draw, logs, Allocate)
    if place is None:
        return None
    rank, position = place
    live: dict[int, Allocate] = {}
    for entry in logs[rank][:position]:
        if isinstance(entry, Allocate):
            live[entry.block] = entry
        elif isinstance(entry, Free):
            live.pop(entry.block, None)
    if not live:
        return None
    taken = draw.choice(list(live.values()))
    changed = replace(logs[rank][position], address=taken.address)
    return _with(logs, rank, [*logs[rank][:position], changed, *logs[rank][position + 1 :]])


def forget_the_other_streams(draw: random.Random, logs: Logs) -> Logs | None:
    """The waits by which a stream comes behind the uses of its own memory are left out: all of one stream."""
    rank = draw.randrange(len(logs))
    streams = sorted({entry.stream for entry in logs[rank] if isinstance(entry, Wait)})
    if not streams:
        return None
    stream = draw.choice(streams)
    return _with(logs, rank, [e for e in logs[rank] if not (isinstance(e, Wait) and e.stream == stream)])


# Graphs


def capture_the_host(draw: random.Random, logs: Logs) -> Logs | None:
    """Work of the host comes inside of a graph."""
    place = _drawn(draw, logs, BeginCapture)
    if place is None:
        return None
    rank, position = place
    host = HostWork(logs[rank][position].stream, "aten._local_scalar_dense.default", (), ())
    ends = [p for p in _positions(logs[rank], EndCapture) if p > position]
    at = draw.randint(position + 1, ends[0])
    return _with(logs, rank, [*logs[rank][:at], host, *logs[rank][at:]])


def end_without_the_others(draw: random.Random, logs: Logs) -> Logs | None:
    """A graph ends before the waits by which its streams meet."""
    place = _drawn(draw, logs, EndCapture)
    if place is None:
        return None
    rank, position = place
    before = position
    while isinstance(logs[rank][before - 1], Wait):
        before -= 1
    return _with(logs, rank, _moved(logs[rank], position, before)) if before < position else None


def begin_without_the_others(draw: random.Random, logs: Logs) -> Logs | None:
    """A stream works in a graph without having waited for one of its events."""
    place = _drawn(draw, logs, BeginCapture)
    if place is None:
        return None
    rank, position = place
    log = logs[rank]
    first = {}
    for at in (p for p in _positions(log, Wait, Launch) if p > position):
        first.setdefault(log[at].stream, []).append(at)
    early = [places[0] for places in first.values() if isinstance(log[places[0]], Wait)]
    early = [p for p in early if any(isinstance(log[q], Launch) for q in first[log[p].stream][1:2])]
    return _with(logs, rank, _without(log, draw.choice(early))) if early else None


def read_what_moves(draw: random.Random, logs: Logs) -> Logs | None:
    """A graph reads memory that another place gives each time: an input is not copied to one of its own."""
    rank = draw.randrange(len(logs))
    log = logs[rank]
    read = {block for entry in log if isinstance(entry, Launch) for block in entry.reads}
    inputs = [p for p in _positions(log, Allocate) if log[p].static and log[p].block in read]
    if not inputs:
        return None
    at = draw.choice(inputs)
    moving = replace(log[at], static=False)
    made = Launch(moving.stream, "copy", (), (moving.block,))
    return _with(logs, rank, [*log[:at], moving, made, *log[at + 1 :]])


def begin_twice(draw: random.Random, logs: Logs) -> Logs | None:
    """A graph begins inside of another."""
    place = _drawn(draw, logs, BeginCapture)
    return place and _with(logs, place[0], [*logs[place[0]][: place[1] + 1], *logs[place[0]][place[1] :]])


KINDS: dict[str, Sequence[Change]] = {
    "events": (drop_a_wait, wait_behind_the_reader, record_too_early, record_on_another_stream),
    "communicators": (swap_two_works, drop_a_work, change_a_work, leave_a_member_out),
    "memory": (free_before_the_last_use, free_twice, take_memory_in_use, forget_the_other_streams),
    "graphs": (capture_the_host, end_without_the_others, begin_without_the_others, read_what_moves, begin_twice),
}


def planted(kind: str, programs: Sequence[Logs], count: int, seed: int) -> Iterator[tuple[str, Logs]]:
    """That many faults of a kind in the logs of programs, each with its description."""
    draw = random.Random(f"{kind} {seed}")
    given = 0
    for _ in range(count * 200):
        if given == count:
            return
        change = draw.choice(KINDS[kind])
        logs = change(draw, draw.choice(programs))
        if not logs or (_is_of_order(change) and all(map(is_in_order, logs))):
            continue
        given += 1
        yield (change.__doc__ or "").strip(), logs
    raise AssertionError(f"only {given} faults of {kind} can be planted in these programs")


def _is_of_order(change: Change) -> bool:
    """Whether a change may leave everything in order: then what it did is looked at first."""
    return change in (
        drop_a_wait, wait_behind_the_reader, record_too_early, record_on_another_stream, forget_the_other_streams,
        free_before_the_last_use,
    )  # fmt: skip


def is_in_order(log: Log) -> bool:
    """Whether all work on each address, and what follows where memory is freed, is ordered: by paths in a graph."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    last: dict[str, int] = {}
    recorded: dict[int, int] = {}
    for position, entry in enumerate(log):
        if isinstance(entry, Launch | HostWork | Record | Wait):
            graph.add_node(position)
            if entry.stream in last:
                graph.add_edge(last[entry.stream], position)
            last[entry.stream] = position
        if isinstance(entry, Record):
            recorded[entry.event] = position
        if isinstance(entry, Wait):
            if entry.event not in recorded:
                return False
            graph.add_edge(recorded[entry.event], position)
    after = {node: nx.descendants(graph, node) for node in graph}
    given = {entry.block: entry for entry in log if isinstance(entry, Allocate)}
    works = [(position, work) for position, work in enumerate(log) if isinstance(work, Launch | HostWork)]
    touches: dict[int, list[tuple[int, bool]]] = {}
    for position, work in works:
        for block in work.reads:
            touches.setdefault(given[block].address, []).append((position, False))
        for block in work.writes:
            touches.setdefault(given[block].address, []).append((position, True))
    for places in touches.values():
        for index, (second, writes) in enumerate(places):
            if any(
                first != second and (writes or wrote) and second not in after[first] for first, wrote in places[:index]
            ):
                return False
    for position, entry in enumerate(log):
        if isinstance(entry, Free):
            uses = [p for p, work in works if entry.block in (*work.reads, *work.writes)]
            stream = given[entry.block].stream
            following = next((p for p, work in works if p > position and work.stream == stream), None)
            if any(use > position or (following is not None and following not in after[use]) for use in uses):
                return False
    return True
