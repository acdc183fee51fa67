"""Drop views that undo each other, and merge reshapes of reshapes.

Before                                         After
  %1 = aten.t %0                                 (%2 is %0)
  %2 = aten.t %1
  %4 = aten.reshape %3 to (64, 32)               %5 = aten.reshape %3 to (4, 16, 32)
  %5 = aten.reshape %4 to (4, 16, 32)            (%7 is %6, which has that shape already)
  %7 = aten.reshape %6 to (4, 16)

Autograd leaves many: the transpose of a weight's gradient, transposed again; a matrix product's flattened rows, taken
apart and flattened again. Needs: tensors without placements, or cut.   Keeps: values.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.module import Module, operations
from ...ir.operations import Call, build, read
from ..base import Pass, Remark, RemarkKind, Report

_RESHAPE = "aten.reshape.default"
_INVOLUTIONS = frozenset({"aten.t.default", "aten.transpose.int"})
"""Views that undo themselves when their constants are the same."""


@dataclass(frozen=True)
class SimplifyViews(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "simplify-views"

    def run(self, module: Module) -> Report:
        counts: Counter[str] = Counter()
        for function in module.functions().values():
            for op in operations(function):
                call = read(op)
                if call is not None and (call.name == _RESHAPE or call.name in _INVOLUTIONS) and _simplify(op, call):
                    counts[call.name] += 1
        remarks = [
            Remark(self.name, RemarkKind.APPLIED, f"{count} x {name} dropped or merged with the view before it")
            for name, count in counts.items()
        ]
        return Report(counts.total(), tuple(remarks))


def _simplify(op: Operation, call: Call) -> bool:
    """Replace one view by something earlier, where there is something; what is left unused is removed."""
    operand = call.args[0]
    made = _made_by(operand)
    replacement: Value | None = None
    if call.name == _RESHAPE and operand.type == op.results[0].type:
        replacement = operand
    elif made is not None and made.name == call.name:
        if call.name == _RESHAPE:
            with context(), mlir.InsertionPoint(op):
                [replacement] = build(Call(_RESHAPE, (made.args[0], call.args[1])), [op.results[0].type], op.location)
        elif made.args[1:] == call.args[1:]:
            replacement = made.args[0]
    if replacement is None:
        return False
    op.results[0].replace_all_uses_with(replacement)
    op.operation.erase()
    return True


def _made_by(value: Value) -> Call | None:
    """The call whose one result the value is."""
    owner = value.owner
    return None if isinstance(owner, mlir.Block) or len(owner.results) != 1 else read(owner)
