"""Let an expert take no more rows than the capacity of its `experts` statement: later ones are dropped.

Before (plan: .. { capacity 1.5 }; 8 rows, 4 experts)   After
  %y = nn.expert_linear %x, %w, %experts                  %kept = nn.kept_experts %experts, 4, 3
                                                          %y = nn.expert_linear %x, %w, %kept {capacity = 3}

The capacity is F times the even share of rows, rounded up. Rows are counted in the order of the whole batch's tokens,
so the same rows are dropped under any sharding and on any number of ranks. The result of a dropped row is zero, and
it adds nothing to any gradient; a model's residual carries the token on. Dropped rows are not sent.

All products that one choice of experts selects for drop the same rows, so their weights must have one capacity (E0140).

Needs: level `aten`, products by expert raised (`raise-experts`).   Keeps: values only of rows that are not dropped: it
changes the function, as the plan demands.   Cost: the experts of all rows are gathered, one number a row.
Source: GShard (arXiv:2006.16668), section 2.2; Switch Transformer (arXiv:2101.03961), section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from ...dsl.error import PlanError, RoutingCode
from ...dsl.plan import Plan
from ...dsl.resolve import experts_of
from ...dsl.routing.experts import Experts
from ...ir.attributes import to_attribute
from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module
from ...ir.types import from_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..rewriting import Emitter, site_weights
from .expert_weights import WeightNames, expert_choices

KEPT = "nn.kept_experts"


@dataclass(frozen=True)
class CapExperts(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "cap-experts"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    keeps_values: ClassVar[bool] = False
    joins_layers: ClassVar[bool] = True
    plan: Plan
    """The plan; its `experts` statements are used."""

    def run(self, module: Module) -> Report:
        names, site_counts, remarks = WeightNames(module), site_weights(module), CountedRemarks(self.name)
        count = 0
        for name, function in module.functions().items():
            for experts, (products, weights) in expert_choices(function).items():
                statement = self._statement([[*names.of(weight, function)] for weight in weights])
                if statement is None:
                    continue
                number, rows = from_mlir(weights[0].type).shape[0], prod(from_mlir(experts.type).shape)
                most = statement.most_rows(rows, number)
                assert most is not None, "only a statement with a capacity is given"
                count += len(products) if most < rows else 0
                if most < rows:
                    _cap(experts, products, number, most)
                    message = f"changes the function: an expert takes {most} of {rows} rows, and drops others"
                else:
                    message = f"drops nothing: an expert takes {most} rows, and there are {rows}"
                remarks.applied(message, from_location(products[0].location), site_counts[name])
        return Report(count, remarks.remarks())

    def _statement(self, weights: Sequence[Sequence[str]]) -> Experts | None:
        """The statement with the capacity of weights, each given by its names; None where they have none.

        Raises PlanError E0140 where some have another.
        """
        named = {name: experts_of(self.plan, name) for names in weights for name in names}
        capped = {name: each for name, each in named.items() if each is not None and each.capacity is not None}
        if not capped:
            return None
        first, statement = next(iter(capped.items()))
        others = [name for name, each in named.items() if each is None or each.capacity != statement.capacity]
        if others or not all(weights):
            other = f'"{others[0]}"' if others else "a matrix that is no parameter"
            raise PlanError(
                RoutingCode.BAD_EXPERTS,
                f'"{first}" has a capacity, and {other}, which the same rows or those of an equal layer are '
                "multiplied by, has another or none",
                span=statement.spans.get("capacity", statement.span),
                expected="expected one capacity for all weights and biases of experts",
                help="match the modules that own the experts, of all layers, in one statement",
            )
        return statement


def _cap(experts: Value, products: Sequence[Operation], count: int, most: int) -> None:
    """Give the products the experts of the rows that are kept."""
    with context(), mlir.InsertionPoint(products[0]):
        kept = Emitter(products[0].location).op(KEPT, experts, count, most, type=from_mlir(experts.type))
    for op in products:
        op.operands[2] = kept
        op.attributes["capacity"] = to_attribute(most)
