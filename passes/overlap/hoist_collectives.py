"""Move every collective as early as its operand allows, before work that it does not need.

Before                                        After
  %0 = aten.mm %g, %w       input gradient      %0 = aten.mm %g, %w
  %1 = aten.mm %gt, %x      weight gradient     %2 = comm.all_reduce %0 over ["tp"]
  %2 = comm.all_reduce %0 over ["tp"]           %1 = aten.mm %gt, %x
  %3 = nn.rms_norm_backward %2, ..              %3 = nn.rms_norm_backward %2, ..

When `start-collectives` separates start and wait, the work that follows hides the collective: weight gradients hide the
reduction of input gradients. Collectives keep their order, which all ranks share. Operands of the moved work stay alive
a little longer. Nothing moves across a custom op: these are ordered against all communication.

Where a tensor goes round a ring, each hop stays behind the work on what the hop before it sent. So hops hide one by one
behind the work on what they send, and of all that passes a rank two blocks are alive.

In the entry of a stage, tasks, sends and receives keep their order: a collective, with the operations between it and
the last task that it needs, moves right behind that task. A collective over the pipeline axis stays.

Needs: level `comm`.   Keeps: values.   Source: Megatron-LM's overlap of a linear layer's input-gradient
all-reduce with its weight gradient (arXiv:2205.05198, appendix).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...dsl.communication.overlap import ALL_KINDS
from ...ir.attributes import from_attribute
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import COLLECTIVES, TRANSFERS
from ...ir.locations import CHUNK, SPLIT_LOSS, from_location, idiom_of
from ...ir.module import Level, Module, callee, operations
from ...ir.operations import read, use_of
from ...ir.pipelined_module import entries, pipeline_axis
from ..base import Pass, Report
from ..collective_text import collective_text
from ..counted_remarks import CountedRemarks
from ..option_values import Range
from ..sharding.rules.views import TABLE as VIEWS
from .custom_ops import IsBarrier, communication_barriers
from .kinds import kind_of, kinds_in
from .positions import note_positions


@dataclass(frozen=True)
class HoistCollectives(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "hoist-collectives"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    prefetch: Annotated[int, Range(0, unit="layers")] = 1
    """How many units the gather of a stored parameter is moved ahead of; each may hold its parameters whole. A unit is
    a call of a layer, or what one module does with its gathered parameters."""
    kinds: str = ALL_KINDS
    """Which kinds of communication move, separated by commas; none: no kind."""
    once: bool = False
    """Let one collective alone move ahead of an operation, so that what waits to be computed does not pile up."""

    def run(self, module: Module) -> Report:
        moved, remarks, kinds = 0, CountedRemarks(self.name), kinds_in(self.kinds)
        axis = pipeline_axis(module)
        is_barrier = communication_barriers(module)
        stages = entries(module) if axis is not None else ()
        for function in module.functions().values():
            is_entry = function in stages
            pending: list[Operation] = []
            gathered: dict[Value, tuple[str, bool]] = {}
            order, moved_before = list(operations(function)), moved
            for op in order[:-1]:
                gathered.update(_gathered_by(op, gathered))
                if _is_collective(op):
                    stays = kind_of(op) not in kinds or (is_entry and axis in from_attribute(op.attributes["axes"]))
                    independent = (
                        [] if stays else self._independent(op, pending, gathered, is_barrier, is_entry=is_entry)
                    )
                    _move_after(op, independent)
                    moved += len(independent)
                    if independent:
                        remarks.applied(
                            f"{collective_text(op)} begins before work that does not need it",
                            from_location(op.location),
                        )
                    pending = [] if self.once else independent
                else:
                    pending.append(op)
            if moved > moved_before and not is_entry:
                note_positions(order)
        return Report(moved, remarks.remarks())

    def _independent(
        self,
        collective: Operation,
        pending: list[Operation],
        gathered: Mapping[Value, tuple[str, bool]],
        is_barrier: IsBarrier,
        *,
        is_entry: bool,
    ) -> list[Operation]:
        """The operations since the last collective on which this one does not depend, in order.

        In an entry, those since the last task (or receive) that it depends on. Never those before a custom op.
        """
        needed: set[Value] = set(collective.operands)
        sent_before = _sent_before(collective)
        independent = []
        own = {_module(collective)}
        units: set[object] = set()
        for op in reversed(pending):
            if is_barrier(op) or idiom_of(op.location) in (CHUNK, SPLIT_LOSS):
                break  # operations of a chunk stay together, or all chunks would be alive at once
            units.update([op] if callee(op) is not None else (gathered[v] for v in op.operands if v in gathered))
            units.difference_update(own)
            if len(units) > self.prefetch and use_of(collective) is not None:
                break  # earlier, whole parameters would pile up
            if any(result in needed for result in op.results) or any(value in sent_before for value in op.operands):
                if is_entry and (callee(op) is not None or op.operation.name in TRANSFERS):
                    break
                needed.update(op.operands)
            else:
                independent.append(op)
        return independent[::-1]


def _module(op: Operation) -> tuple[str, bool]:
    """The module that an operation belongs to, and whether it is of its backward."""
    origin = from_location(op.location)
    return origin.module_path, origin.backward


def _gathered_by(op: Operation, gathered: Mapping[Value, tuple[str, bool]]) -> dict[Value, tuple[str, bool]]:
    """The results of the gather of a stored parameter, or of a view of one, with the module that it is for."""
    if use_of(op) is not None:
        return dict.fromkeys(op.results, _module(op))
    call = read(op) if len(op.operands) == 1 and op.operands[0] in gathered else None
    is_view = call is not None and call.name in VIEWS
    return dict.fromkeys(op.results, gathered[op.operands[0]]) if is_view else {}


def _sent_before(collective: Operation) -> set[Value]:
    """What the hop before this one sent, where a tensor goes on that has just come."""
    makers = [value.owner for value in collective.operands if isinstance(value.owner, mlir.OpView | mlir.Operation)]
    return {value for maker in makers if maker.operation.name == collective.operation.name for value in maker.operands}


def _is_collective(op: Operation) -> bool:
    call = read(op) if op.operation.name.startswith("comm.") else None
    return call is not None and call.name in COLLECTIVES


def _move_after(collective: Operation, independent: list[Operation]) -> None:
    last = collective
    for op in independent:
        op.operation.move_after(last.operation)
        last = op
