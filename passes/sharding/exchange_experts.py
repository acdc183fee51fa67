"""Bring the stacked matrices of a list of experts to the ranks that compute with them, and their gradients back.

Before (each rank has a part of each expert)              After
  %w = aten.stack %w0, %w1, ..                              %w = aten.stack %w0, %w1, ..        : ep = shard(1)
  %y = nn.expert_linear %x, %w, %experts                    %v = comm.reshard %w {use = 0}      : ep = shard(0)
  ..                                                        %y = nn.expert_linear %x, %v, %experts
  %g = nn.expert_outer_products %x, %dy, %experts, %w       ..
  %g0 = aten.select %g, 0, 0                                %h = comm.reshard %g                : ep = shard(1)
                                                            %g0 = aten.select %h, 0, 0

A parameter of one expert is cut as any other is, so optimizers and checkpoints know nothing of it. An all-to-all makes
whole experts of the parts. The backward exchanges them again, as `zero 3` gathers again: no copy of them is kept.

Needs: level `aten`, placements on arguments, products by expert raised (`raise-experts`).   Keeps: values.
Cost: of a layer's W elements on n ranks, W (n-1)/n^2 are sent for the forward, for the backward and for the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ...dsl.plan import Plan
from ...dsl.resolve import experts_of
from ...dsl.routing.experts import Move
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import RESHARD
from ...ir.dialects.context import context
from ...ir.locations import from_location
from ...ir.module import Level, Module, argument_records, entry, operations
from ...ir.operations import Call, build, made_by, mark_recomputed, read, set_use
from ...ir.placement import Placement, Reduce
from ...ir.types import from_mlir, to_mlir
from ..base import Pass, Report
from ..counted_remarks import CountedRemarks
from ..normalize.expert_weights import FOLLOWED, WeightNames
from ..normalize.idioms.expert_rows import LINEAR, OUTER
from ..rewriting import erase_unused, producer, site_weights, users

_STACK = "aten.stack.default"
_BACK = ("aten.transpose.int", "aten.squeeze.dim", "aten._to_copy.default")
"""Operations between a gradient and that of each expert's own parameter."""


@dataclass(frozen=True)
class ExchangeExperts(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "exchange-experts"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    joins_layers: ClassVar[bool] = True
    plan: Plan
    """The plan; its `experts` statements are used."""

    def run(self, module: Module) -> Report:
        names, site_counts, remarks = WeightNames(module), site_weights(module), CountedRemarks(self.name)
        count = 0
        for name, function in module.functions().items():
            exchange = _Exchange(module, self.plan, names, function)
            for op in [*operations(function)]:
                if exchange.product(op):
                    remarks.applied("experts of a list exchanged", from_location(op.location), site_counts[name])
                    count += 1
            erase_unused(function)
        return Report(count, remarks.remarks())


@dataclass
class _Exchange:
    """The rewrite of one function."""

    module: Module
    plan: Plan
    names: WeightNames
    function: Operation
    _there: dict[tuple[Value, bool], Value] = field(default_factory=dict)
    """By weight and direction, the weight where its experts are computed."""

    def product(self, op: Operation) -> bool:
        """Exchange the weight of a product by expert, or the gradient that it computes; False for other operations."""
        call = read(op)
        if call is None or call.name not in (LINEAR, OUTER):
            return False
        weight = call.args[1 if call.name == LINEAR else 3]
        axes = self._axes(weight)
        if not axes:
            return False
        stack = _stack_of(weight)
        assert stack is not None, "it has axes"
        here = self._stacked(stack)
        with context():
            there = self._moved(weight, op, axes, here)
            op.operation.operands[1 if call.name == LINEAR else 3] = there
            if call.name == OUTER:
                self._bring_back(op.results[0], self._partial(here, axes))
        return True

    def _axes(self, weight: Value) -> tuple[str, ...]:
        """The axes that experts of a list are cut over; none for other weights, or where all is on one rank."""
        if _stack_of(weight) is None:
            return ()
        statements = [experts_of(self.plan, name) for name in self.names.of(weight, self.function)]
        sizes = dict(self.module.mesh)
        axes = {() if each is None or each.move is Move.WEIGHTS else each.axes for each in statements}
        return tuple(axis for axis in axes.pop() if sizes[axis] > 1) if len(axes) == 1 else ()

    def _partial(self, here: Placement, axes: Sequence[str]) -> Placement:
        """The placement of gradients that are still to be summed over the axes, of experts apart, that cut rows."""
        main = self.module.functions()["main"]
        inputs = [
            from_mlir(argument.type).placement_on(self.module.mesh)
            for argument, record in zip(entry(main).arguments, argument_records(main), strict=True)
            if record.get("kind") == "input"
        ]
        cutting = {axis for placement in inputs for nested in placement.dims for axis in nested}
        held = {*axes, *(axis for nested in here.dims for axis in nested)}
        order = (axis for axis, size in self.module.mesh if size > 1 and axis in cutting - held)
        return replace(here, partial=tuple((axis, Reduce.SUM) for axis in order))

    def _stacked(self, stack: Value) -> Placement:
        """The placement of a stack that leaves its parts where they are."""
        made = producer(stack)
        assert made is not None, "a stack is an operation's result"
        part = made.args[0][0]
        while (before := producer(part)) is not None and before.name in FOLLOWED and before.name != RESHARD:
            part = before.args[0]
        return Placement(((), *from_mlir(part.type).placement_on(self.module.mesh).dims))

    def _moved(self, weight: Value, before: Operation, axes: Sequence[str], here: Placement) -> Value:
        """A weight, made again from its stack, of which each rank has whole experts."""
        backward = from_location(before.location).backward
        if (weight, backward) in self._there:
            return self._there[weight, backward]
        made = producer(weight)
        assert made is not None, "it comes from a stack"
        is_stack = made.name == _STACK
        operand = None if is_stack else self._moved(made.args[0], before, axes, here)
        with mlir.InsertionPoint(before):
            call = made if operand is None else Call(made.name, (operand, *made.args[1:]), made.kwargs)
            [moved] = build(call, [weight.type], before.location)
            if backward:
                mark_recomputed(made_by(moved))
            if is_stack:
                dims = tuple(tuple(axis for axis in nested if axis not in axes) for nested in here.dims)
                target = Placement((tuple(axes), *dims[1:]))
                moved = self._resharded(moved, target, before, len(self._there))
        self._there[weight, backward] = moved
        return moved

    def _bring_back(self, gradient: Value, here: Placement) -> None:
        """Give the gradients of experts the placement of their parameters."""
        while (through := [op for op in users(gradient) if (call := read(op)) and call.name in _BACK]) and len(
            users(gradient)
        ) == 1:
            gradient = through[0].results[0]
        reading = users(gradient)
        first = next(op for op in operations(self.function) if op in reading)
        with mlir.InsertionPoint(first):
            back = self._resharded(gradient, here, first, None)
        for op in reading:
            op.operation.replace_uses_of_with(gradient, back)

    def _resharded(self, value: Value, target: Placement, before: Operation, use: int | None) -> Value:
        type_ = to_mlir(from_mlir(value.type).placed(target, self.module.mesh))
        [moved] = build(Call(RESHARD, (value,)), [type_], before.location)
        set_use(moved.owner, use)
        return moved


def _stack_of(weight: Value) -> Value | None:
    """The stack of parameters that a weight is; None for another weight."""
    while (made := producer(weight)) is not None and made.name in FOLLOWED:
        weight = made.args[0]
    return weight if made is not None and made.name == _STACK else None
