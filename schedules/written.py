"""Instantiate a written schedule: a `Schedule` whose tasks have source spans."""

from __future__ import annotations

from ..diagnostics import Span
from ..dsl.error import PlanError, WrittenCode
from ..dsl.expression import evaluate
from ..dsl.schedule import Op, Phase, Shape, WrittenSchedule
from .error import ScheduleCode, ScheduleError
from .request import Request, not_defined
from .schedule import Kind, Schedule, Task, loop_placement, ordered, v_placement


def elaborate(written: WrittenSchedule, request: Request) -> Schedule:
    """The schedule for a request's numbers. In a text without W, B is the full backward.

    Raises PlanError for expressions (E0130, E0131), a count below 0 (E0133) and a chunk that the rank does not have
    (E0134), ScheduleError for a number of chunks that does not suit the text (E0441) and for a microbatch that does not
    exist (E0723).
    """
    chunks = _chunks(written, request)
    ranks = request.ranks
    placement = v_placement(ranks) if written.shape == Shape.V else loop_placement(ranks, chunks)
    splits = any(op.kind == "W" for phase in written.phases for op in phase.ops)
    orders = []
    for rank in range(ranks):
        stages = [stage for stage, owner in enumerate(placement) if owner == rank]
        order = _RankTasks(written, rank, stages, request, splits)
        for phase in written.phases:
            order.run(phase)
        orders.append(order)
    return Schedule(
        written.name, ranks, request.microbatches, placement, ordered(order.tasks for order in orders),
        spans=tuple(tuple(order.spans) for order in orders),
    )  # fmt: skip


def _chunks(written: WrittenSchedule, request: Request) -> int:
    several = len(written.parameters) > 2
    chunks = request.chunks or (2 if several else 1)
    if written.shape == Shape.V and chunks != 2:
        raise not_defined(written.name, "2 chunks for its placement v", str(chunks))
    if chunks > 1 and not several:
        help = "declare them in its first line: (stages p, microbatches m, chunks v)"
        raise not_defined(written.name, "1 chunk", str(chunks), help)
    return chunks


class _RankTasks:
    """The tasks of one rank under construction."""

    def __init__(self, written: WrittenSchedule, rank: int, stages: list[int], request: Request, splits: bool) -> None:
        numbers = (request.ranks, request.microbatches, len(stages))
        self.values = dict(zip(written.parameters, numbers, strict=False)) | {written.stage: rank}
        self.rank, self.stages, self.count, self.splits = rank, stages, request.microbatches, splits
        self.tasks: list[Task] = []
        self.spans: list[Span] = []
        self.done: dict[tuple[str, int], int] = {}
        self.delayed_w: dict[int, list[int]] = {stage: [] for stage in stages}
        """By stage, the microbatches whose W is a task of its own."""

    def run(self, phase: Phase) -> None:
        """Append the tasks of a phase."""
        ops = [(op, self._stage(op)) for op in phase.ops]
        if phase.count is None:
            while any(self._left(op, stage) for op, stage in ops):
                for op, stage in ops:
                    if self._left(op, stage):
                        self._add(op, stage)
            return
        count = evaluate(phase.count, self.values)
        if count < 0:
            message = f"on rank {self.rank} the repeat count of this phase is {count}"
            least, help = "expected 0 or more", f"write max(0, {phase.count})"
            raise PlanError(WrittenCode.NEGATIVE_COUNT, message, span=phase.span, expected=least, help=help)
        for _ in range(count):
            for op, stage in ops:
                self._add(op, stage)

    def _stage(self, op: Op) -> int:
        if op.chunk is None and len(self.stages) == 1:
            return self.stages[0]
        chunk = -1 if op.chunk is None else evaluate(op.chunk, self.values)
        if not 0 <= chunk < len(self.stages):
            problem = "but the task names none" if op.chunk is None else f"not {chunk}"
            message = f"rank {self.rank} holds chunks 0..{len(self.stages) - 1}, {problem}"
            help = f"write {op.kind}[0] for the first chunk"
            raise PlanError(WrittenCode.NO_SUCH_CHUNK, message, span=op.span, help=help)
        return self.stages[chunk]

    def _left(self, op: Op, stage: int) -> bool:
        whole = self.done.get(("B", stage), 0) - len(self.delayed_w[stage]) if op.kind == "W" else 0
        return self.done.get((op.kind[0], stage), 0) + whole < self.count

    def _add(self, op: Op, stage: int) -> None:
        """Append a task for the next microbatch of its kind."""
        microbatch = self.done.get((op.kind[0], stage), 0)
        if not self._left(op, stage):
            raise ScheduleError(
                ScheduleCode.NO_SUCH_TASK,
                f"rank {self.rank} runs {op.kind} of microbatch {microbatch} on stage {stage}, which does not exist",
                span=op.span,
                expected=f"expected {op.kind} at most {self.count} times on a stage",
                help="lower the count, or omit that of the last phase: it then runs the remaining microbatches",
            )
        self.done[op.kind[0], stage] = microbatch + 1
        kind = Kind.BW if op.kind == "B" and not self.splits else Kind[op.kind]
        delayed_w = self.delayed_w[stage]
        if kind == Kind.B:
            delayed_w.append(microbatch)
        elif kind == Kind.W and microbatch < len(delayed_w):
            microbatch = delayed_w[microbatch]
        self.tasks.append(Task(kind, stage, microbatch))
        self.spans.append(op.span or Span("<schedule>", 1))
