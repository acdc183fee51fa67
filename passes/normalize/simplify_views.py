"""Drop views that undo each other, and merge reshapes of reshapes.

Before                                         After
  %1 = aten.t %0                                 (%2 is %0)
  %2 = aten.t %1
  %4 = aten.reshape %3 to (64, 32)               %5 = aten.reshape %3 to (4, 16, 32)
  %5 = aten.reshape %4 to (4, 16, 32)            (%7 is %6, which has that shape already)
  %7 = aten.reshape %6 to (4, 16)

Autograd leaves many: the transpose of a weight's gradient, transposed again; a matrix product's flattened rows,
unflattened and flattened again. Needs: tensors without placements, or cut.   Keeps: values.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from ...ir.bindings import Value, mlir
from ...ir.dialects.context import context
from ...ir.module import Module
from ..base import Pass, Remark, RemarkKind, Report
from ..rewriting import Site, producer, site_weights, sites

_RESHAPE = "aten.reshape.default"
_INVOLUTIONS = frozenset({"aten.t.default", "aten.transpose.int"})
"""Views that are their own inverse with the same constants."""


@dataclass(frozen=True)
class SimplifyViews(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "simplify-views"
    joins_layers: ClassVar[bool] = True

    def run(self, module: Module) -> Report:
        counts: Counter[str] = Counter()
        weights = site_weights(module)
        for site in sites(module, {_RESHAPE, *_INVOLUTIONS}):
            replacement = _earlier(site)
            if replacement is not None:
                site.replace(replacement)
                counts[site.call.name] += weights[site.function]
        remarks = [
            Remark(self.name, RemarkKind.APPLIED, f"{count} x {name} dropped or merged with the view before it")
            for name, count in counts.items()
        ]
        return Report(counts.total(), tuple(remarks))


def _earlier(site: Site) -> Value | None:
    """The replacement of a view: its operand, the source of that, or a reshape of the source; None if there is none."""
    call, [operand, *constants] = site.call, site.call.args
    inner = producer(operand)
    if call.name == _RESHAPE and operand.type == site.op.results[0].type:
        return operand
    if inner is None or inner.name != call.name:
        return None
    if call.name == _RESHAPE and inner.args[0].type == site.op.results[0].type:
        return inner.args[0]
    if call.name == _RESHAPE:
        with context(), mlir.InsertionPoint(site.op):
            return site.emitter.op(_RESHAPE, inner.args[0], *constants, type=site.type)
    return inner.args[0] if list(inner.args[1:]) == constants else None
