"""What faults of modules are made with: the operation at hand, and small edits around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from stretto.ir.attributes import from_attribute, to_attribute
from stretto.ir.bindings import Operation, Type, Value, mlir
from stretto.ir.dialects.context import context
from stretto.ir.module import Module, entry, operations
from stretto.ir.operations import Call, build, is_packing, read
from stretto.ir.placement import Mesh, axes_size
from stretto.ir.types import TensorType, from_mlir, is_tensor, to_mlir


@dataclass(frozen=True)
class Site:
    """An operation of a module, and the dice that decide what is not said by the kind of fault."""

    op: Operation
    function: Operation
    mesh: Mesh
    random: Random

    @property
    def call(self) -> Call:
        """The operation's name and arguments; one of no dialect of ours is named as MLIR names it."""
        return read(self.op) or Call(self.op.operation.name, tuple(self.op.operands))

    @property
    def result(self) -> Value:
        return self.op.results[0]

    @property
    def type(self) -> TensorType:
        """What the one result is."""
        return from_mlir(self.result.type)

    @property
    def size(self) -> int:
        """Ranks in the group of a collective or of another operation over axes."""
        return axes_size(self.mesh, tuple(self.constant("axes")))

    def constant(self, name: str) -> Any:
        """A constant argument."""
        return from_attribute(self.op.attributes[name])

    def set(self, name: str, value: Any) -> None:
        """Change a constant argument."""
        self.op.attributes[name] = to_attribute(value)

    def emit(self, name: str, args: Sequence[Any], type_: TensorType | Type, **kwargs: Any) -> Value:
        """A new operation before this one; its only result."""
        mlir_type = to_mlir(type_) if isinstance(type_, TensorType) else type_
        with context(), mlir.InsertionPoint(self.op):
            value: Value = build(Call(name, tuple(args), kwargs), [mlir_type], self.op.location)[0]
        return value

    def emit_after(self, name: str, args: Sequence[Any], type_: TensorType | Type, **kwargs: Any) -> Value:
        """A new operation behind this one; its only result."""
        mlir_type = to_mlir(type_) if isinstance(type_, TensorType) else type_
        body = list(operations(self.function))
        following = body[body.index(self.op) + 1]
        with context(), mlir.InsertionPoint(following):
            value: Value = build(Call(name, tuple(args), kwargs), [mlir_type], self.op.location)[0]
        return value

    def instead(self, value: Value) -> Changed:
        """Let all that used the operation's result use `value`, which may itself be made of the result."""
        result = self.result
        if value.owner.operation in [use.owner.operation for use in result.uses]:
            result.replace_all_uses_except(value, value.owner.operation)
        else:
            result.replace_all_uses_with(value)
        return [value]

    def erased(self, value: Value) -> Changed:
        """Let `value`, which is not made of the operation's result, stand in its place."""
        changed = self.instead(value)
        self.op.operation.erase()
        return changed

    def earlier(self, type_: Type) -> list[Value]:
        """Every value of a type that is there before the operation, arguments first."""
        values = [a for a in entry(self.function).arguments if a.type == type_]
        for op in operations(self.function):
            if op == self.op:
                break
            values.extend(r for r in op.results if r.type == type_)
        return values


Changed = list[Value]
"""The values that stand, in the altered module, for the results that the operation had."""
Fault = Callable[[Site], Changed | None]
"""Alters a module at a site, or says by None, the module untouched, that it is about other operations."""


def sites(module: Module, random: Random) -> list[Site]:
    """Every operation of a module, packing left out, in a random order."""
    mesh = module.mesh
    matching = [
        Site(op, function, mesh, random)
        for function in module.functions().values()
        for op in operations(function)
        if not is_packing(op)
    ]
    random.shuffle(matching)
    return matching


def tensors(op: Operation) -> list[tuple[int, Value]]:
    """The operands that are tensors, with their numbers."""
    return [(i, v) for i, v in enumerate(op.operands) if is_tensor(v.type)]


def pairs_of_one_type(values: Sequence[tuple[int, Value]]) -> list[tuple[tuple[int, Value], tuple[int, Value]]]:
    """Two different values of one type each, with their numbers."""
    return [(a, b) for n, a in enumerate(values) for b in values[n + 1 :] if a[1].type == b[1].type and a[1] != b[1]]


def plain(type_: TensorType, shape: Sequence[int]) -> TensorType:
    """A type of the same dtype with another shape, of which no placement is said."""
    return TensorType(type_.dtype, tuple(shape))
