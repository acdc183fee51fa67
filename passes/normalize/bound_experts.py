"""Give products by expert the bound of their `experts` statement: how many rows a rank has room for.

Before (plan: experts "*.experts" over ep { bound 1.5 })   After
  %y = nn.expert_linear %x, %w, %experts                     %y = nn.expert_linear %x, %w, %experts {bound = 1.5}

Products of the same choice of experts share their rows, so they get one bound: the largest that a statement gives their
weights, in all layers that the function stands for. A parameter that a statement cuts as experts, and that no product
by expert reads, is refused (E0140).

Needs: level `aten`, products by expert raised (`raise-experts`).   Keeps: values, of runs that do not exceed the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from ...dsl.error import PlanError, RoutingCode
from ...dsl.plan import Plan
from ...dsl.resolve import experts_of
from ...ir.attributes import to_attribute
from ...ir.bindings import Value
from ...ir.locations import from_location
from ...ir.module import Level, Module
from ...ir.types import from_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..rewriting import site_weights
from .expert_weights import WeightNames, expert_choices


@dataclass(frozen=True)
class BoundExperts(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "bound-experts"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True
    plan: Plan
    """The plan; its `experts` statements are used."""

    def run(self, module: Module) -> Report:
        names, site_counts, remarks = WeightNames(module), site_weights(module), CountedRemarks(self.name)
        used: set[str] = set()
        count = 0
        for name, function in module.functions().items():
            for products, weights in expert_choices(function).values():
                parameters = {each for weight in weights for each in names.of(weight, function)}
                used |= parameters
                self._check_divides(weights[0], parameters)
                bound = self._bound(parameters)
                if bound is not None:
                    for op in products:
                        op.attributes["bound"] = to_attribute(bound)
                    count += len(products)
                    message = f"room for {bound:g} times the even share of rows"
                    remarks.applied(message, from_location(products[0].location), site_counts[name])
        self._check_used(names, used)
        return Report(count, remarks.remarks())

    def _bound(self, parameters: set[str]) -> float | None:
        """The largest bound of the parameters' statements; None where one gives none."""
        statements = (experts_of(self.plan, name) for name in parameters)
        bounds = [statement.bound for statement in statements if statement is not None]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if known and len(known) == len(bounds) else None

    def _check_divides(self, weight: Value, parameters: set[str]) -> None:
        """Raise PlanError E0140 where ranks cannot share the experts of a list evenly; others were checked before."""
        count, sizes = from_mlir(weight.type).shape[0], dict(self.plan.mesh.axes)
        for name in sorted(parameters):
            statement = experts_of(self.plan, name)
            ranks = 1 if statement is None else prod(sizes[axis] for axis in statement.axes)
            if statement is not None and count % ranks:
                raise PlanError(
                    RoutingCode.BAD_EXPERTS,
                    f'"{name}" is of one of {count} experts, which {ranks} ranks over {", ".join(statement.axes)} '
                    "cannot share evenly",
                    span=statement.span,
                    expected=f"expected a multiple of {ranks} experts",
                    help="make the axes smaller",
                )

    def _check_used(self, names: WeightNames, used: set[str]) -> None:
        for parameter in names.parameters:
            statement = experts_of(self.plan, parameter)
            if statement is not None and parameter not in used:
                raise PlanError(
                    RoutingCode.BAD_EXPERTS,
                    f'"{parameter}" is cut as experts, but no row is multiplied by a matrix of it that a router chose',
                    span=statement.span,
                    expected="expected weights (experts, ..) of products in groups, or of one chosen for each row; or "
                    "a loop over equal experts that masks their results by a router's top-k",
                    help="match the module that owns the experts; a Hugging Face model computes them so with "
                    'experts_implementation="grouped_mm"; or keep the matrices of a list of experts in one parameter '
                    "(experts, out, in), and multiply each row by that of its expert: torch.bmm of weights[experts]",
                )
