"""What ran when: the tasks of steps, simulated or real, and the file that Perfetto and Chrome show of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Task:
    """One kernel, instruction, collective or message: from `start` to `end`, in seconds from the start."""

    stage: int
    """Of the pipeline; of a real run, the rank."""
    lane: str
    name: str
    place: str
    """The module and source line of its first instruction; empty where nothing is known."""
    start: float
    end: float

    def later(self, seconds: float) -> Task:
        """The same task at another time."""
        return replace(self, start=self.start + seconds, end=self.end + seconds)


def trace_events(tasks: Sequence[Task], process: str = "a rank of stage {}", steps: int = 1) -> dict[str, object]:
    """The tasks of so many steps in Chrome's trace format, in microseconds: a process a stage, a thread a lane.

    Source: Google, "Trace Event Format", complete events ("X") and metadata ("M").
    """
    lanes = sorted({(task.stage, task.lane) for task in tasks})
    threads = {lane: number for number, lane in enumerate(lanes, 1)}
    named = [
        {"ph": "M", "name": "process_name", "pid": stage, "args": {"name": process.format(stage)}}
        for stage in sorted({stage for stage, _ in lanes})
    ]
    named += [
        {"ph": "M", "name": "thread_name", "pid": stage, "tid": thread, "args": {"name": lane}}
        for (stage, lane), thread in threads.items()
    ]
    events = [
        {
            "ph": "X", "name": task.name, "pid": task.stage, "tid": threads[task.stage, task.lane],
            "ts": task.start * 1e6, "dur": (task.end - task.start) * 1e6, "args": {"place": task.place},
        }
        for task in tasks
    ]  # fmt: skip
    return {"displayTimeUnit": "ms", "traceEvents": [*named, *events], "steps": steps}
