"""Leave communication in place where it would raise the peak: no collective is under way where most memory is alive.

Before (the peak is at `%3`)                   After
  %f = comm.all_gather_start %w over ["dp"]      %3 = aten.mm %a, %b
  %3 = aten.mm %a, %b                            %f = comm.all_gather_start %w over ["dp"]
  %4 = aten.relu %3                              %1 = comm.wait %f
  %1 = comm.wait %f                              %4 = aten.relu %3

From its start to its wait a collective keeps its operand and its result. Where the bytes alive are the most, each
collective under way is put in place: at its wait, if its result is the larger part of what it keeps, else at its start.
Where none is under way, what `hoist-collectives` moved around that place stands again where it stood. That repeats
until the peak is within the cap, or nothing is left to do. So a step needs no more memory than with all communication
in place; with `memory +N%` it may need so much more, with `memory BYTES` it must fit.

In the entry of a stage no start moves, and no wait moves before a send: another rank may need the message.

Needs: level `comm`, behind `start-collectives`.   Keeps: values.   Source of the peak: `live_bytes.py`, by the rules of
the prover.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...costs.compute import bytes_of
from ...dsl.error import OverlapCode, PlanError
from ...dsl.plan import Plan
from ...dsl.spelling import bytes_text
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import RECEIVE_START, SEND, STARTS, WAIT, collective
from ...ir.locations import Origin, from_location
from ...ir.module import Level, Module, entry, operations, terminator
from ...ir.operations import is_packing, made_by
from ...ir.pipelined_module import entry_names, pipeline_axis
from ..base import Pass, Report
from ..collective_text import collective_text
from ..counted_remarks import CountedRemarks
from ..graph import Graph
from ..memory.kept import behind
from .live_bytes import LiveBytes, Peak, Step
from .memory_caps import store_caps
from .positions import forget_positions, position_of

_STARTS = STARTS - {RECEIVE_START}


@dataclass(frozen=True)
class CapMemory(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "cap-memory"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    plan: Plan
    """The plan; the `memory` of its `overlap` is used."""
    follow_precision: bool = True
    """Whether dtypes are those of the plan; else bytes that a rank may need are not compared."""

    def run(self, module: Module) -> Report:
        remarks = CountedRemarks(self.name)
        if not any(op.operation.name in _STARTS for f in module.functions().values() for op in operations(f)):
            return Report()
        said, caps = self.plan.overlap, dict[str, float]()
        if said.growth or said.memory is not None:
            trial = _InPlace(Module.parse(module.text()))
            caps = {name: self._cap(name, trial.limit(name, 0.0), trial) for name in trial.entries}
        placing = _InPlace(module)
        for name in placing.entries:
            placing.limit(name, caps.get(name, 0.0))
        for text, where, origin in placing.moved:
            remarks.applied(f"{text} stays {where}: under way it would raise the peak", origin)
        forget_positions(module)
        store_caps(module, caps)
        return Report(len(placing.moved) + placing.put_back, remarks.remarks())

    def _cap(self, name: str, least: int, trial: _InPlace) -> float:
        """The cap of an entry beyond its arguments. Raises PlanError E0143 where it cannot be met."""
        said = self.plan.overlap
        given = sum(bytes_of(argument) for argument in entry(trial.live.functions[name]).arguments)
        if said.memory is None:
            return least + (least + given) * said.growth / 100
        if self.follow_precision and least + given > said.memory:
            raise PlanError(
                OverlapCode.DOES_NOT_FIT,
                f"a rank needs {least + given} bytes with all communication in place, more than "
                f"{bytes_text(said.memory)}",
                span=said.spans.get("memory", said.span),
                help="shard or store more over further ranks, recompute, or allow more memory",
            )
        return said.memory - given


@dataclass
class _InPlace:
    """Puts collectives of a module in place, where they are under way at a peak."""

    module: Module
    moved: list[tuple[str, str, Origin]] = field(default_factory=list)
    put_back: int = 0
    """Steps that stand again where they stood."""

    def __post_init__(self) -> None:
        if "main" in self.module.functions():
            _put_forward_first(self.module.functions()["main"])
        self.live = LiveBytes(self.module)
        self.entries = tuple(entry_names(self.module))
        self._has_stages = pipeline_axis(self.module) is not None

    def limit(self, name: str, cap: float) -> int:
        """Put in place until the peak of an entry is within the cap, or nothing is left to do; the peak."""
        while True:
            peak = self.live.peak(name)
            if peak.bytes <= cap:
                return peak.bytes
            placed = sum(self._put_in_place(*place) for place in peak.path)
            self.live.forget_peaks()
            if not placed and not any(self._put_back(name, peak, *place) for place in peak.path):
                return peak.bytes

    def _put_in_place(self, name: str, index: int) -> int:
        """Put what is under way at a step of a function in place, where that frees memory there; how many."""
        steps = self.live.steps(name)
        peak, count = steps[index], 0
        for start, waits in list(_under_way(steps, index)):
            at_start, at_wait = self._gains(name, peak, start, waits)
            if at_wait > at_start and not (self._has_stages and name in self.entries):
                _move_before(steps, start, waits[0])
                where = "where its result is used"
            elif at_start > 0:
                _move_behind(steps, start, waits)
                where = "where it starts"
            else:
                continue
            count += 1
            op = start.node.op
            self.moved.append((collective_text(op), where, from_location(op.location)))
        return count

    def _put_back(self, entry_name: str, peak: Peak, name: str, index: int) -> bool:
        """Put the steps around a step of a function in the order in which they stood, if that lowers the peak."""
        steps = self.live.steps(name)
        backward_at = self.live.backward_at[name]
        start, end = (backward_at, len(steps)) if index >= backward_at else (0, backward_at)
        positions = [position_of(step.node.op) for step in steps[start:end]]
        if (self._has_stages and name in self.entries) or any(position is None for position in positions):
            return False
        low, high = (start + at for at in _window([position or 0 for position in positions], index - start))
        now = steps[low : high + 1]
        then = sorted(now, key=lambda step: position_of(step.node.op) or 0)
        if not _makes_before_use(then):  # a bucket stands where its last member stood, behind users of the others
            return False
        steps[low : high + 1] = then
        helps = self.live.peak(entry_name).bytes < peak.bytes
        if helps:
            _sort_by_position(now[0].node.op, now[-1].node.op)
            self.put_back += sum(old is not new for old, new in zip(now, steps[low:], strict=False))
        else:
            steps[low : high + 1] = now
            self.live.forget_peaks()
        return helps

    def _gains(self, name: str, peak: Step, start: Step, waits: Sequence[Step]) -> tuple[int, int]:
        """The bytes that are not alive at the peak if a collective is in place at its start, and at its first wait."""
        steps, sizes = self.live.steps(name), self.live.memories.bytes
        found = self.live.memories.of(name)
        at, first, last = (steps.index(each) for each in (peak, waits[0], waits[-1]))
        kept = {found[value] for value in terminator(self.live.functions[name]).operands}
        kept |= {memory for step in steps[at:] if step not in waits for memory in (*step.reads, *step.makes)}
        sends = any(step.node.name == SEND for step in steps[steps.index(start) : last])
        freed = {found[value] for value in start.node.operands} - kept if start is not peak and not sends else set()
        known = collective(start.node.name)
        movable = first > at and known is not None and not known.coalesces
        return sum(sizes.get(m, 0) for m in freed), sum(sizes.get(m, 0) for m in start.makes) if movable else 0


def _under_way(steps: Sequence[Step], index: int) -> Iterator[tuple[Step, list[Step]]]:
    """The collectives that start at a step or before it and are waited for at it or later, with their waits."""
    waits: dict[Value, Step] = {step.node.operands[0]: step for step in steps[index:] if step.node.name == WAIT}
    for position, step in enumerate(steps[: index + 1]):
        if step.node.name not in _STARTS:
            continue
        futures = step.node.values
        if futures and all(future in waits for future in futures):
            own = sorted((waits[future] for future in futures), key=steps.index)
            if steps[position + 1 : position + 1 + len(own)] != own:
                yield step, own


def _makes_before_use(steps: Sequence[Step]) -> bool:
    """Whether each value that one of the steps makes is made before the steps that take it."""
    made_at = {value: at for at, step in enumerate(steps) for value in step.node.values}
    return all(made_at.get(value, -1) < at for at, step in enumerate(steps) for value in step.node.operands)


def _window(positions: Sequence[int], index: int) -> tuple[int, int]:
    """The steps around one whose order is not that of their positions: its least closed range, ends included."""
    own = positions[index]
    swapped = [at for at, position in enumerate(positions) if (at < index) == (position > own) and position != own]
    low, high = min([index, *swapped]), max([index, *swapped])
    while True:
        inside = positions[low : high + 1]
        least, most = min(inside), max(inside)
        members = [at for at, position in enumerate(positions) if least <= position <= most]
        if (members[0], members[-1]) == (low, high):
            return low, high
        low, high = members[0], members[-1]


def _put_forward_first(function: Operation) -> None:
    """Put a function's operations in the order in which a program runs them."""
    late = {node.op for node in behind(Graph.of(function))}
    ops = list(operations(function))
    for op in filter(is_packing, ops):  # a list with its user, and what takes a list apart with its maker
        maker = made_by(op.results[0]) if len(op.operands) == 1 else op
        users = {use.owner for result in op.results for use in result.uses}
        if maker in late or (maker is op and users <= late):
            late.add(op)
    for op in ops[:-1] if late else ():
        if op in late:
            op.operation.move_before(ops[-1].operation)


def _sort_by_position(first: Operation, last: Operation) -> None:
    """Put the operations of a block from one to another in the order in which they stood."""
    block = list(operations(first.operation.parent.opview))
    end = block.index(last) + 1
    while is_packing(block[end]) and block[end].operands[0].owner == last:
        end += 1
    ops, keys = block[block.index(first) : end], list[int]()
    following = position_of(last) or 0
    for op in reversed(ops):
        position = position_of(op)
        following = following if position is None else position  # a list is packed right before its user
        keys.insert(0, following)
    for at, op in enumerate(ops):
        if position_of(op) is None and not isinstance(op.operands[0].owner, mlir.Block) and at:
            keys[at] = (
                keys[at - 1] if op.operands[0].owner == ops[at - 1] else keys[at]
            )  # and unpacked behind its maker
    for at in sorted(range(len(ops)), key=lambda at: keys[at]):
        ops[at].operation.move_before(block[end].operation)


def _move_before(steps: list[Step], start: Step, wait: Step) -> None:
    """Start a collective right before its first wait."""
    steps.remove(start)
    steps.insert(steps.index(wait), start)
    start.node.op.operation.move_before(wait.node.op.operation)


def _move_behind(steps: list[Step], start: Step, waits: Sequence[Step]) -> None:
    """Wait for a collective right behind its start."""
    place = start.node.op
    for value in start.node.values:  # of a bucket, behind the operation that takes its futures apart
        place = value.owner
    for position, wait in enumerate(waits, steps.index(start) + 1):
        steps.remove(wait)
        steps.insert(position, wait)
        wait.node.op.operation.move_after(place)
        place = wait.node.op
