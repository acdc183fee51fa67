"""Give the collectives over an axis a lane of their own: those of different groups do not wait for each other.

Before                                        After (axes=dp)
  %0 = comm.all_reduce %a over ["dp"]           %0 = comm.all_reduce %a over ["dp"] {lane = "dp"}
  %1 = comm.all_reduce %b over ["tp"]           %1 = comm.all_reduce %b over ["tp"]

A lane is in order, and lanes wait for each other only where one reads what another made. Without a lane of its own a
collective starts on the lane "comm". A collective over several axes takes the lane of the first that has one.

Needs: level `comm`, before `start-collectives`.   Keeps: values, and the order of operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.attributes import from_attribute
from ...ir.bindings import Operation
from ...ir.collectives import collective
from ...ir.lanes import lane_of, set_lane
from ...ir.locations import from_location
from ...ir.module import Level, Module, operations
from ..base import Pass, Remark, RemarkKind, Report
from ..collective_text import collective_text
from ..counted_remarks import CountedRemarks


@dataclass(frozen=True)
class AssignLanes(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "assign-lanes"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    axes: str = ""
    """The axes whose collectives have a lane of their own, separated by commas; empty: none."""

    def run(self, module: Module) -> Report:
        axes = [axis.strip() for axis in self.axes.split(",") if axis.strip()]
        count, remarks, used = 0, CountedRemarks(self.name), set[str]()
        for function in module.functions().values():
            for op in operations(function):
                lane = _lane(op, axes)
                if lane:
                    set_lane(op, lane)
                    used.add(lane)
                    count += 1
                    remarks.applied(f"{collective_text(op)} is on the lane {lane}", from_location(op.location))
        empty = [
            Remark(
                self.name, RemarkKind.WARNING, f'no operation is on the lane "{axis}": no collective is over the axis'
            )
            for axis in axes
            if axis not in used
        ]
        return Report(count, (*remarks.remarks(), *empty))


def _lane(op: Operation, axes: list[str]) -> str:
    """The lane for an operation; empty for one that is no collective, has a lane, or is over none of the axes."""
    if collective(op.operation.name) is None or lane_of(op):
        return ""
    over = from_attribute(op.attributes["axes"])
    return next((axis for axis in axes if axis in over), "")
