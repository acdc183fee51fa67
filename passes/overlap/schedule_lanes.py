"""Order the operations of a function so that its collectives run beside other work, where that is quicker by counts.

Before                                          After
  %f = comm.all_reduce_start %a over ["tp"]       %f = comm.all_reduce_start %a over ["tp"]
  %1 = comm.wait %f                               %3 = aten.mm %x, %y       needs no result of it
  %2 = aten.add %1, %r                            %1 = comm.wait %f
  %3 = aten.mm %x, %y                             %2 = aten.add %1, %r

`list_schedule.py` orders by dependences and durations, which `weights.py` counts in bytes and FLOPs; a cost model may
give others. An order is taken only if it takes less time and raises no rank's peak (by the prover's rules), or raises
it no further than the plan's `memory` allows. No communication moves across a custom op, or across a call of a
function: `prefetch` says how many layers ahead gathers run. A collective whose operand is an argument of the
function, such as a parameter's gather, starts no earlier than before. Kinds that are not to be hidden stay in place.

All ranks run the same function, so the collectives of a group have one order on all of them. The entries of pipeline
stages keep their order, since other ranks wait for their messages.

Needs: level `comm`, behind `start-collectives` and `cap-memory`.   Keeps: values, and the peak of every entry.
Cost: n log n in the operations of a distinct function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...dsl.communication.overlap import ALL_KINDS
from ...ir.attributes import from_attribute
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import SEND, STARTS, TRANSFERS, WAIT
from ...ir.lanes import lane_of
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations, terminator
from ...ir.operations import is_packing
from ...ir.pipelined_module import entry_names, pipeline_axis
from ..base import Pass, Remark, RemarkKind, Report
from ..graph import Node
from ..memory.kept import behind
from ..option_values import Range
from .custom_ops import IsBarrier, communication_barriers
from .kinds import kind_of, kinds_in
from .list_schedule import COMPUTE, Job, Problem, Urgency, bound, schedule, timeline
from .live_bytes import LiveBytes, Step
from .memory_caps import take_caps
from .weights import CountedWeights, Weights


@dataclass(frozen=True)
class ScheduleLanes(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "schedule-lanes"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    kinds: str = ALL_KINDS
    """Which kinds of communication run beside other work, separated by commas; the others stay in place."""
    least_gain: Annotated[int, Range(0, unit="percent")] = 1
    """By how much less time an order must take; else operations stay where they stand."""

    def run(self, module: Module) -> Report:
        caps = take_caps(module)
        scheduling = _Scheduling(module, self.weights(module), kinds_in(self.kinds), 1 - self.least_gain / 100, caps)
        stages = entry_names(module) if pipeline_axis(module) is not None else ()
        remarks, moved = list[Remark](), 0
        for name, function in module.functions().items():
            if name not in stages and any(op.operation.name in STARTS for op in operations(function)):
                for outcome in scheduling.function(name):
                    moved += outcome.moved
                    kind = RemarkKind.APPLIED if outcome.moved else RemarkKind.MISSED
                    remarks.append(Remark(self.name, kind, outcome.message, from_location(function.location)))
        return Report(moved, tuple(remarks))

    def weights(self, module: Module) -> Weights:
        """The durations to order by. A pass with a cost model gives its own."""
        return CountedWeights(module)


@dataclass(frozen=True)
class _Outcome:
    moved: int
    message: str


class _Scheduling:
    def __init__(
        self, module: Module, weights: Weights, kinds: frozenset[str], most: float, caps: Mapping[str, int]
    ) -> None:
        self._module, self._weights, self._kinds, self._most, self._caps = module, weights, kinds, most, caps
        self._functions = module.functions()
        self._is_barrier = communication_barriers(module)
        self._live = LiveBytes(module)
        self._peaks: dict[str, int] = {}
        """By entry, when a quicker order was found: what it may not exceed."""

    def function(self, name: str) -> list[_Outcome]:
        """Order a function; of main, its forward and its backward apart."""
        graph = self._live.memories.graph(name)
        late = behind(graph) if name == "main" else set[Node]()
        forward, backward = (
            [node for node in graph.nodes if node not in late],
            [node for node in graph.nodes if node in late],
        )
        outcomes = []
        for part in (forward, backward):
            outcome, part[:] = self._part(name, part)
            outcomes += [outcome] if outcome else []
        if any(outcome.moved for outcome in outcomes):
            _apply(self._functions[name], [*forward, *backward])
        return outcomes

    def _part(self, name: str, nodes: list[Node]) -> tuple[_Outcome | None, list[Node]]:
        """The outcome for some nodes of a function, and their order."""
        groups = _groups(nodes, self._kinds)
        jobs = _jobs(groups, self._weights, self._is_barrier)
        now = timeline(jobs, range(len(jobs))).total
        least = bound(jobs)
        if least >= now * self._most:
            return None, nodes
        candidates = [schedule(Problem(jobs), urgency) for urgency in Urgency]
        if min(timeline(jobs, order).total for order in candidates) > now * self._most:
            return None, nodes
        return self._best(name, groups, jobs, now, least)

    def _best(
        self, name: str, groups: Sequence[list[Node]], jobs: Sequence[Job], now: float, least: float
    ) -> tuple[_Outcome, list[Node]]:
        """Take the quickest order that needs no more memory."""
        if not self._peaks:
            peaks = {entry: self._live.peak(entry).bytes for entry in entry_names(self._module)}
            self._peaks = {entry: max(peak, self._caps.get(entry, 0)) for entry, peak in peaks.items()}
        steps = self._live.steps(name)
        problem = _with_memory(jobs, groups, steps, self._live, self._functions[name])
        cap = self._live.peak(name).bytes
        orders = [schedule(problem, urgency, most) for most in (cap, float("inf")) for urgency in Urgency]
        times = {number: timeline(jobs, order).total for number, order in enumerate(orders)}
        for number in sorted(times, key=lambda number: times[number]):
            if times[number] > now * self._most:
                break
            ordered = [node for group in orders[number] for node in groups[group]]
            if self._fits(steps, ordered):
                moved = sum(place != group for place, group in enumerate(orders[number]))
                percent = 100 * (1 - times[number] / now)
                message = (
                    f"{moved} operations of {name} stand elsewhere, for {percent:.0f}% less time by counts; no order "
                    f"takes more than {100 * (1 - least / now):.0f}% less"
                )
                return _Outcome(moved, message), ordered
        percent = 100 * (1 - min(times.values()) / now)
        message = f"{name} stays in order: {percent:.0f}% less time by counts would raise the peak of a rank"
        return _Outcome(0, message), [node for group in groups for node in group]

    def _fits(self, steps: list[Step], ordered: Sequence[Node]) -> bool:
        """Whether no entry's peak rises if the steps stand in an order; only then they stay in it."""
        of_op = {step.node.op: step for step in steps}
        before = list(steps)
        moved = {node.op for node in ordered}
        places = [number for number, step in enumerate(steps) if step.node.op in moved]
        for place, node in zip(places, ordered, strict=True):
            steps[place] = of_op[node.op]
        self._live.forget_peaks()
        if all(self._live.peak(entry).bytes <= most for entry, most in self._peaks.items()):
            return True
        steps[:] = before
        self._live.forget_peaks()
        return False


def _groups(nodes: Sequence[Node], kinds: frozenset[str]) -> list[list[Node]]:
    """The nodes one by one; a start that is not to be hidden together with its waits, which follow it."""
    groups: list[list[Node]] = []
    in_place: dict[Value, list[Node]] = {}
    for node in nodes:
        if node.name == WAIT and node.operands[0] in in_place:
            in_place[node.operands[0]].append(node)
            continue
        groups.append([node])
        if node.name in STARTS and kind_of(node.op) not in kinds:
            in_place.update(dict.fromkeys(node.values, groups[-1]))
    return groups


def _jobs(groups: Sequence[list[Node]], weights: Weights, is_barrier: IsBarrier) -> list[Job]:
    """The groups as jobs that need what makes their operands, and what they stand apart from."""
    made: dict[Value, int] = {}
    jobs: list[Job] = []
    apart: int | None = None
    since: list[int] = []
    before = 0
    for number, group in enumerate(groups):
        first, inside = group[0], {value for node in group for value in node.values}
        values = dict.fromkeys(v for node in group for v in node.operands if v not in inside)
        needs = list(dict.fromkeys(made[value] for value in values if value in made))
        communicates = first.name in STARTS or first.name == WAIT or first.name in TRANSFERS
        if first.callee is not None or first.name == SEND or is_barrier(first.op):
            needs += [*since, *([apart] if apart is not None else [])]
            apart, since = number, []
        elif communicates:
            needs += [apart] if apart is not None else []
            since.append(number)
        if first.name in STARTS and not needs and number:
            needs.append(before)  # what is there from the beginning, such as a parameter, would pile up
        job = _job(group, weights, tuple(dict.fromkeys(needs)), jobs)
        if job.duration and job.lane == COMPUTE:
            before = number
        jobs.append(job)
        made.update({value: number for node in group for value in node.values})
    return jobs


def _job(group: Sequence[Node], weights: Weights, needs: tuple[int, ...], jobs: Sequence[Job]) -> Job:
    first = group[0]
    if first.name in STARTS and len(group) > 1:
        return Job(weights.collective(first), needs)
    if first.name in STARTS:
        axes = from_attribute(first.op.attributes["axes"])
        return Job(weights.collective(first), needs, lane_of(first.op) or ", ".join(axes))
    if first.name == WAIT:
        return Job(0.0, needs, waits=bool(needs) and jobs[needs[0]].lane != COMPUTE)
    return Job(weights.compute(first), needs)


def _with_memory(
    jobs: Sequence[Job], groups: Sequence[list[Node]], steps: Sequence[Step], live: LiveBytes, function: Operation
) -> Problem:
    """The jobs with the memories that they read and make."""
    found = live.memories.of(str(from_attribute(function.attributes["sym_name"])))
    of_op = {step.node.op: step for step in steps}
    numbers: dict[object, int] = {}
    sized = [
        _numbered(job, [of_op[node.op] for node in group], numbers) for job, group in zip(jobs, groups, strict=True)
    ]
    kept = frozenset(numbers[found[v]] for v in terminator(function).operands if found[v] in numbers)
    made = {memory for job in sized for memory in job.makes}
    sizes = [live.memories.bytes.get(memory, 0) if number in made else 0 for memory, number in numbers.items()]  # type: ignore[call-overload]
    return Problem(sized, sizes, kept)


def _numbered(job: Job, steps: Sequence[Step], numbers: dict[object, int]) -> Job:
    reads = tuple(numbers.setdefault(memory, len(numbers)) for step in steps for memory in step.reads)
    makes = tuple(numbers.setdefault(memory, len(numbers)) for step in steps for memory in step.makes)
    return Job(job.duration, job.needs, job.lane, job.waits, reads, makes)


def _apply(function: Operation, ordered: Sequence[Node]) -> None:
    """Put all operations in an order: a list is packed before its first user, and taken apart behind its maker.

    Lists that nobody takes go last.
    """
    last, moved = terminator(function), set[Operation]()
    lists = [op for op in operations(function) if is_packing(op)]

    def move(op: Operation) -> None:
        if op not in moved:
            moved.add(op)
            op.operation.move_before(last.operation)

    for node in ordered:
        for value in node.op.operands:
            if not isinstance(value.owner, mlir.Block) and is_packing(value.owner) and len(value.owner.results) == 1:
                move(value.owner)
        move(node.op)
        for use in [use for result in node.op.results for use in result.uses]:
            if is_packing(use.owner) and len(use.owner.operands) == 1:
                move(use.owner)
    for op in lists:
        move(op)
