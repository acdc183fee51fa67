"""Rewrite operations one by one: find them by name, build their replacement, erase dead operations.

A pass of this kind is a table of patterns by the names of operations, which `rewrite` applies to every function:

    def run(self, module: Module) -> Report:
        return rewrite(module, self.name, {"aten.mean.dim": _split})

    def _split(site: Site) -> Outcome:
        [operand, *rest] = site.call.args
        total = site.emitter.op("aten.sum.dim_IntList", operand, *rest, type=site.type)
        site.replace(site.emitter.op("aten.div.Scalar", total, 8, type=site.type))
        return Applied("mean written as a sum and a division")

Passes that move operations, or rewrite several at once, use only `sites`, `producer` and `users`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..ir.bindings import Location, Operation, Value, mlir
from ..ir.dialects.context import context
from ..ir.dialects.schemas import by_mlir_name
from ..ir.locations import Origin, from_location
from ..ir.module import Level, Module, call_counts, operations
from ..ir.operations import Call, build, is_packing, read
from ..ir.types import TensorType, from_mlir, to_mlir
from .base import Report
from .counted_remarks import CountedRemarks


@dataclass(frozen=True)
class Applied:
    """A pattern rewrote its operation."""

    message: str


@dataclass(frozen=True)
class Declined:
    """A pattern left its operation, for a reason that the user should know."""

    message: str


Outcome = Applied | Declined | None
"""The outcome of a pattern on one operation; None: it does not apply."""


class Emitter:
    """Inserts operations with one result at the current insertion point, all with one location in the model."""

    def __init__(self, loc: Location) -> None:
        self.loc = loc

    def op(self, name: str, *args: Any, type: TensorType, **kwargs: Any) -> Value:
        """One operation whose result has the given type."""
        [result] = build(Call(name, args, kwargs), [to_mlir(type)], self.loc)
        return result

    def like(self, name: str, value: Value, *args: Any, **kwargs: Any) -> Value:
        """One operation whose result has the type of its first operand."""
        return self.op(name, value, *args, type=from_mlir(value.type), **kwargs)


@dataclass(frozen=True)
class Site:
    """One operation to rewrite. `origin` is valid after the operation is erased."""

    op: Operation
    call: Call
    origin: Origin
    function: str

    @property
    def emitter(self) -> Emitter:
        """Builds operations that get the location of this one."""
        return Emitter(self.op.location)

    @property
    def type(self) -> TensorType:
        """The type of the first result."""
        return from_mlir(self.op.results[0].type)

    def replace(self, *values: Value | None) -> None:
        """Replace the results by `values` (None for an unused one) and erase the operation."""
        for old, new in zip(self.op.results, values, strict=True):
            if new is not None:
                old.replace_all_uses_with(new)
        self.op.operation.erase()


Pattern = Callable[[Site], Outcome]
"""Rewrites one operation or leaves it; new operations are inserted before it."""


def rewrite(module: Module, pass_name: str, patterns: Mapping[str, Pattern]) -> Report:
    """Apply each operation's pattern once, in order; inserted operations are not rewritten again."""
    count, remarks, weights = 0, CountedRemarks(pass_name), site_weights(module)
    for site in sites(module, patterns):
        with context(), mlir.InsertionPoint(site.op):
            outcome = patterns[site.call.name](site)
        match outcome:
            case Applied(message):
                count += weights[site.function]
                remarks.applied(message, site.origin, weights[site.function])
            case Declined(message):
                remarks.missed(message, site.origin, weights[site.function])
    return Report(count, remarks.remarks())


def site_weights(module: Module) -> dict[str, int]:
    """By function, how many operations of the model one of its operations stands for, in remarks.

    At level `aten` a folded layer counts as often as it is called; later, as one.
    """
    return call_counts(module) if module.level is Level.ATEN else dict.fromkeys(module.functions(), 1)


def sites(module: Module, names: Container[str]) -> Iterator[Site]:
    """The operations with one of `names`, in order, function by function."""
    definitions = by_mlir_name()
    for name, function in module.functions().items():
        for op in operations(function):
            definition = definitions.get(op.operation.name)
            if definition is None or definition.name not in names:
                continue
            call = read(op)
            if call is not None:
                yield Site(op, call, from_location(op.location), name)


def producer(value: Value) -> Call | None:
    """The operation of Stretto's dialects that makes a value; None for an argument or a function call's result."""
    return read(value.owner) if isinstance(value.owner, mlir.OpView | mlir.Operation) else None


def users(value: Value) -> list[Operation]:
    """The operations that use a value, one for each use."""
    return [use.owner for use in value.uses]


def is_used(op: Operation) -> bool:
    """Whether anything uses a result of an operation."""
    return any(next(iter(result.uses), None) is not None for result in op.results)


def erase_unused(function: Operation, only: Container[str] | None = None) -> None:
    """Erase the pure operations whose results nothing uses, transitively; `only`: none of other names."""
    for op in reversed(list(operations(function))[:-1]):
        if _may_go(op, only) and not is_used(op):
            op.operation.erase()


def _may_go(op: Operation, only: Container[str] | None) -> bool:
    definition = by_mlir_name().get(op.operation.name)
    if definition is None:
        return is_packing(op)
    return definition.pure and (only is None or definition.name in only)
