"""Outline fused regions: chains of small operations become calls of functions that a target may run as one kernel.

Before                                          After
  %1 = aten.mul %x, %x                            %0 = call @region(%x, %w)
  %2 = aten.mean.dim %1 [-1]                      %1 = aten.mm %0, ..
  %3 = aten.rsqrt %2
  %4 = aten.mul %x, %3                            func private @region(%x, %w) {kind = "region"} {
  %5 = aten.mul %4, %w                              %0 = aten.mul %x, %x
  %6 = aten.mm %5, ..                               ..

A region holds elementwise operations, casts, masks, joins, views and reductions along the last dims or along the
first ones, of the forward or of the backward, over one set of rows. It grows from producer to consumer, but never so
that an operation outside reads one of its results and feeds one of its operands. Views and constants that others read
stay outside too. Collectives, messages and calls keep their order.

Needs: level `comm`, after all other passes, which would have to see through calls.   Keeps: values.
Cost: without a kernel a call for each region.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from ...ir.kinds import kind_of
from ...ir.module import Level, Module
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..graph import Graph
from .grouping import Grouping
from .outlining import Outlining, Region


@dataclass(frozen=True)
class FuseRegions(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "fuse-regions"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})

    def run(self, module: Module) -> Report:
        """Outline the regions of every function that says no kind."""
        outlining, remarks, count = Outlining(module), CountedRemarks(self.name), 0
        for function in module.functions().values():
            if kind_of(function) is not None:
                continue
            graph = Graph.of(function)
            for region in outlining.outline(graph, Grouping(graph).regions()):
                remarks.applied(f"{_summary(region)} are one region", region.origin)
                count += 1
        return Report(count, remarks.remarks())


def _summary(region: Region) -> str:
    """The operations of a region in words.

    >>> _counted(["mul", "mean", "mul"])
    '3 operations (2 mul, mean)'
    """
    return _counted([node.name.split(".")[1].strip("_") for node in region.body])


def _counted(names: list[str]) -> str:
    counts = Counter(names)
    listed = [name if count == 1 else f"{count} {name}" for name, count in counts.items()]
    shown = ", ".join(listed[:6]) + (", .." if len(listed) > 6 else "")
    return f"{len(names)} operations ({shown})"
