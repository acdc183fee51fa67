"""Give products by expert the bound of their `experts` statement: how many rows a rank has room for.

Before (plan: experts "*.experts" over ep { bound 1.5 })   After
  %y = nn.expert_linear %x, %w, %experts                     %y = nn.expert_linear %x, %w, %experts {bound = 1.5}

Products of the same choice of experts share their rows, so they get one bound: the largest that a statement gives their
weights, in all layers that the function stands for. A parameter that a statement cuts as experts, and that no product
by expert reads, is refused (E0140).

Needs: level `aten`, products by expert raised (`raise-experts`).   Keeps: values, of runs that do not exceed the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from ...dsl.error import PlanError, RoutingCode
from ...dsl.plan import Plan
from ...dsl.resolve import matches
from ...dsl.routing.experts import Experts
from ...ir.attributes import to_attribute
from ...ir.bindings import Operation, Value
from ...ir.locations import from_location
from ...ir.module import Level, Module, argument_records, callee, entry, name_of, operations
from ...ir.operations import read
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..rewriting import producer, site_weights
from .idioms.expert_rows import LINEAR, OUTER

_FOLLOWED = ("aten.transpose.int", "aten.t.default", "aten._to_copy.default", "aten.unsqueeze.default", "comm.reshard")
"""Operations through which a weight is still the parameter."""


@dataclass(frozen=True)
class BoundExperts(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "bound-experts"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True
    plan: Plan
    """The plan; its `experts` statements are used."""

    def run(self, module: Module) -> Report:
        names, site_counts, remarks = _Names(module), site_weights(module), CountedRemarks(self.name)
        used: set[str] = set()
        count = 0
        for name, function in module.functions().items():
            for products, weights in _routes(function):
                parameters = {each for weight in weights for each in names.of(weight, function)}
                used |= parameters
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
        bounds = [statement.bound for name in parameters if (statement := self._statement(name)) is not None]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if known and len(known) == len(bounds) else None

    def _statement(self, name: str) -> Experts | None:
        return next((each for each in reversed(self.plan.experts) if matches(each, name)), None)

    def _check_used(self, names: _Names, used: set[str]) -> None:
        for parameter in names.parameters:
            statement = self._statement(parameter)
            if statement is not None and parameter not in used:
                raise PlanError(
                    RoutingCode.BAD_EXPERTS,
                    f'"{parameter}" is cut as experts, but no row is multiplied by a matrix of it that a router chose',
                    span=statement.span,
                    expected="expected weights (experts, ..) of products in groups, or of one chosen for each row",
                    help="match the module that owns the experts; a Hugging Face model computes them so with "
                    'experts_implementation="grouped_mm", and a list of modules, each of one expert, does not: keep '
                    "their matrices in one parameter (experts, out, in)",
                )


def _routes(function: Operation) -> Iterator[tuple[list[Operation], list[Value]]]:
    """The products by expert of a function, and their weights, for each choice of experts."""
    routes: dict[Value, tuple[list[Operation], list[Value]]] = {}
    for op in operations(function):
        call = read(op)
        if call is not None and call.name in (LINEAR, OUTER):
            products, weights = routes.setdefault(call.args[2], ([], []))
            products.append(op)
            weights.append(call.args[1] if call.name == LINEAR else call.args[3])
    yield from routes.values()


@dataclass
class _Names:
    """The names of the parameters that values of functions stand for."""

    module: Module
    parameters: dict[str, Value] = field(default_factory=dict)
    """Main's arguments, by every name of theirs."""

    def __post_init__(self) -> None:
        main = self.module.functions()["main"]
        self._of_main: dict[Value, list[str]] = {}
        for argument, record in zip(entry(main).arguments, argument_records(main), strict=True):
            if record.get("kind") == "parameter":
                self._of_main[argument] = [record["name"], *record.get("aliases", ())]
                self.parameters.update(dict.fromkeys(self._of_main[argument], argument))
        self._calls: dict[str, list[Operation]] = {}
        for op in operations(main):
            if (name := callee(op)) is not None:
                self._calls.setdefault(name, []).append(op)

    def of(self, value: Value, function: Operation) -> Iterator[str]:
        """The names of the parameters that a value is, at every call of its function."""
        while (made := producer(value)) is not None and made.name in _FOLLOWED:
            value = made.args[0]
        if name_of(function) == "main":
            yield from self._of_main.get(value, ())
            return
        arguments = list(entry(function).arguments)
        position = arguments.index(value) if value in arguments else len(arguments)
        for call in self._calls.get(name_of(function), ()):
            if position < len(call.operands):
                yield from self._of_main.get(call.operands[position], ())
