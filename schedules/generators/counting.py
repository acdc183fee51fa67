"""Write the tasks of one rank in order; each kind of task on a stage takes the microbatches in order."""

from __future__ import annotations

from collections import deque

from ..schedule import Kind, Task


class RankOrder:
    """The tasks of a rank under construction."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._next: dict[tuple[Kind, int], int] = {}
        self._delayed: deque[tuple[int, int]] = deque()

    def f(self, stage: int) -> None:
        """The forward of the next microbatch."""
        self.tasks.append(Task(Kind.F, stage, self._count(Kind.F, stage)))

    def bw(self, stage: int) -> None:
        """The full backward of the next microbatch."""
        self.tasks.append(Task(Kind.BW, stage, self._count(Kind.B, stage)))

    def b(self, stage: int) -> None:
        """The input gradient of the next microbatch; its W is delayed."""
        microbatch = self._count(Kind.B, stage)
        self.tasks.append(Task(Kind.B, stage, microbatch))
        self._delayed.append((stage, microbatch))

    def w(self, stage: int | None = None) -> None:
        """The oldest delayed W, of one stage or of any."""
        index = next(index for index, (delayed_stage, _) in enumerate(self._delayed) if stage in (None, delayed_stage))
        delayed_stage, microbatch = self._delayed[index]
        del self._delayed[index]
        self.tasks.append(Task(Kind.W, delayed_stage, microbatch))

    @property
    def delayed(self) -> int:
        """The number of delayed W."""
        return len(self._delayed)

    def done(self, kind: Kind, stage: int) -> int:
        """For how many microbatches F, or B (alone or with W), is written."""
        return self._next.get((kind, stage), 0)

    def _count(self, kind: Kind, stage: int) -> int:
        microbatch = self.done(kind, stage)
        self._next[kind, stage] = microbatch + 1
        return microbatch
