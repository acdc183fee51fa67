"""A schedule as text: a line for each rank, time from left to right."""

from __future__ import annotations

from collections.abc import Iterator

from ...schedules import Kind, Schedule, Task, Timeline

_WIDEST = 150
"""The most columns; a longer schedule is drawn without microbatch numbers, then scaled down."""
_IDLE = "."
_SHARED = {
    Kind.S: "S output, shared by all ranks",
    Kind.T: "T rest of it after the barrier",
    Kind.E: "E embeddings",
    Kind.G: "G their gradient",
}


def picture(schedule: Schedule, timeline: Timeline) -> Iterator[str]:
    """A line for each rank, and a legend.

    A task is its letter and its microbatch: F forward, B backward (input gradient where W is a task), W weight
    gradient; lower case for all but a rank's first chunk. S, T, E and G are the tasks of a vocabulary shared by all
    ranks. The two tasks of an overlapped pair are drawn as halves.
    """
    boxes = _boxes(schedule, timeline)
    lengths = (end - start for task, start, end in boxes if end > start and not task.kind.is_shared)
    shortest = min(lengths, default=1.0)
    label = 1 + len(str(schedule.microbatches - 1)) + 1
    columns = round(timeline.makespan / shortest * label)
    if columns > _WIDEST:
        times = int(_WIDEST * shortest / (timeline.makespan or 1.0))
        columns, label = round(timeline.makespan / shortest * times) if times else _WIDEST, 0
    scale = columns / timeline.makespan if timeline.makespan else 1.0
    width = len(str(schedule.ranks - 1))
    for rank in range(schedule.ranks):
        canvas = [_IDLE] * columns
        for task, start, end in _rank_boxes(schedule, timeline, rank):
            first, last = round(start * scale), round(end * scale)
            text = _letter(schedule, task) + (str(task.microbatch) if label else "") * (last - first > 1)
            filled = text.ljust(last - first) if label else text * (last - first)
            canvas[first:last] = filled[: last - first]
        yield f"rank {rank:>{width}} |{''.join(canvas)}|"
    yield _legend(schedule, bool(label))


def _legend(schedule: Schedule, labelled: bool) -> str:
    split = any(task.kind == Kind.W for row in schedule.order for task in row)
    words = ["F forward"]
    if schedule.has_backward:
        words.append("B gradient of the input, W of the weights" if split else "B backward")
    words += [_SHARED[kind] for kind in sorted(schedule.shared)]
    if schedule.chunks > 1:
        words.append("small letters: later chunks")
    if labelled:
        words.append("numbers: microbatches")
    return "; ".join([*words, ". idle"])


def _letter(schedule: Schedule, task: Task) -> str:
    letter = "B" if task.kind == Kind.BW else task.kind.name
    return letter.lower() if task.stage >= schedule.ranks else letter


def _boxes(schedule: Schedule, timeline: Timeline) -> Iterator[tuple[Task, float, float]]:
    for rank in range(schedule.ranks):
        yield from _rank_boxes(schedule, timeline, rank)


def _rank_boxes(schedule: Schedule, timeline: Timeline, rank: int) -> Iterator[tuple[Task, float, float]]:
    """Task, start and end; each task of an overlapped pair gets half of the pair's time."""
    before: Task | None = None
    for task, start, end in zip(schedule.order[rank], timeline.starts[rank], timeline.ends[rank], strict=True):
        middle = (start + end) / 2
        if task in schedule.overlapped:
            yield task, start, middle
        elif before in schedule.overlapped:
            yield task, middle, end
        else:
            yield task, start, end
        before = task
