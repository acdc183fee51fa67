"""The graph of one function, and how to rewrite the function by it.

The graph is a snapshot. Rewrites go to the function itself, and the graph remembers which value stands for a number
now, so that matches found earlier stay usable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ....ir.bindings import Location, Operation, Type, Value, mlir
from ....ir.dialects.schemas import definitions
from ....ir.module import entry, operations
from ....ir.operations import Call, build, is_packing, read, results_of
from ....ir.types import TensorType, from_mlir, is_tensor
from .dataflow import Dataflow, Node, Ref, Tensor


class FunctionDataflow(Dataflow):
    """The graph of a function's block; operands of an operation that is not ours are named "0", "1", ...

    Types are without the placements that some values may have already: what is computed does not depend on them.
    """

    def __init__(self, function: Operation) -> None:
        super().__init__()
        self._function = function
        self._refs: dict[Value, Ref] = {}
        self._values: dict[Ref, Value] = {}
        self._ready: dict[Ref, int] = {}
        self._types: dict[Type, TensorType | None] = {}
        for argument in entry(function).arguments:
            self._bind(self.value(self._type(argument.type)), argument)
        for op in operations(function):
            if not is_packing(op):
                self._read(op)

    def current(self, ref: Ref | None) -> Value:
        """The value that stands for a number now; None for None."""
        return None if ref is None else self._values[ref]

    def slot(self, matched: Collection[Node], inputs: Iterable[Ref], replaced: Iterable[Ref]) -> int | None:
        """The index of the node before which a replacement stands: the first matched one, or later for its inputs.

        None where that comes after a use, outside of `matched`, of what is to be replaced.
        """
        slot = max(min(node.index for node in matched), *(self._ready[ref] for ref in inputs))
        inside = {node.index for node in matched}
        uses = (user.index for ref in replaced for user in self.users[ref] if user.index not in inside)
        return slot if slot <= min(uses, default=slot) else None

    def insert(self, slot: int, call: Call, types: Sequence[Type], loc: Location) -> list[Any]:
        """Build an operation before the node of index `slot`."""
        with mlir.InsertionPoint(self.nodes[slot].op):
            return build(call, types, loc)

    def replace(self, ref: Ref, value: Value, slot: int) -> None:
        """Let `value`, made before the node of index `slot`, stand for a number wherever that is used."""
        self.exchange(self._values[ref], value)
        self._ready[ref] = slot

    def exchange(self, old: Value, new: Value) -> None:
        """Let `new` stand wherever `old` is used now."""
        old.replace_all_uses_with(new)
        if old in self._refs:
            ref = self._refs[old]
            self._values[ref] = new
            self._refs.setdefault(new, ref)

    def substitute(self, node: Node, call: Call) -> None:
        """Let an operation with results of the same types stand for a node."""
        results = list(node.op.results)
        made = self.insert(node.index, call, [r.type for r in results], node.op.location)
        for ref, value in zip(node.results, made, strict=True):
            self.replace(ref, value, node.index)

    def _bind(self, ref: Ref, value: Value) -> None:
        self._refs[value] = ref
        if ref not in self._values:
            self._values[ref] = value
            self._ready[ref] = len(self.nodes)

    def _read(self, op: Operation) -> None:
        call = read(op)
        if call is None:
            name, found = op.operation.name, list(op.results)
            arguments: dict[str, Any] = {str(i): Tensor(self._refs[v]) for i, v in enumerate(op.operands)}
        else:
            name, found = call.name, _flat(results_of(op))
            arguments = {key: self._argument(a) for key, a in _named(call).items()}
        refs = self.add(name, arguments, [self._type(r.type) for r in found], op)
        for ref, result in zip(refs, found, strict=True):
            self._bind(ref, result)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, mlir.Value):
            return Tensor(self._refs[argument])
        if isinstance(argument, (list, tuple)):
            return tuple(self._argument(a) for a in argument)
        return argument

    def _type(self, type_: Type) -> TensorType | None:
        if type_ not in self._types:
            self._types[type_] = _plain(from_mlir(type_)) if is_tensor(type_) else None
        return self._types[type_]


def _plain(type_: TensorType) -> TensorType:
    return TensorType(type_.dtype, type_.shape)


def _named(call: Call) -> dict[str, Any]:
    positional = zip(definitions()[call.name].arguments, call.args, strict=False)
    return {argument.name: value for argument, value in positional} | call.kwargs


def _flat(results: list[Any]) -> list[Value]:
    return [value for result in results for value in (result if isinstance(result, list) else [result])]
