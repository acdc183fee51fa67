"""The dataflow of one function, and rewrites of the function through it.

The graph is a snapshot. Rewrites change the function itself, and the graph tracks the current value of each ref, so
that earlier matches stay valid.
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
    """The dataflow of a function; operands of operations outside of Stretto's dialects are named "0", "1", ...

    Types are without placements, which some values may have already: they do not affect what is computed.
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
        """The current value of a ref; None for None."""
        return None if ref is None else self._values[ref]

    def slot(self, matched: Collection[Node], inputs: Iterable[Ref], replaced: Iterable[Ref]) -> int | None:
        """The index of the node before which a replacement goes: the first matched one, or later for its inputs.

        None if a node outside of `matched` uses a replaced value before that.
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
        """Replace all uses of a ref by `value`, which is made before the node of index `slot`."""
        self.exchange(self._values[ref], value)
        self._ready[ref] = slot

    def exchange(self, old: Value, new: Value) -> None:
        """Replace all uses of `old` by `new`."""
        old.replace_all_uses_with(new)
        if old in self._refs:
            ref = self._refs[old]
            self._values[ref] = new
            self._refs.setdefault(new, ref)

    def substitute(self, node: Node, call: Call) -> None:
        """Replace a node by an operation with results of the same types."""
        results = list(node.op.results)
        new_results = self.insert(node.index, call, [r.type for r in results], node.op.location)
        for ref, value in zip(node.results, new_results, strict=True):
            self.replace(ref, value, node.index)

    def _bind(self, ref: Ref, value: Value) -> None:
        self._refs[value] = ref
        if ref not in self._values:
            self._values[ref] = value
            self._ready[ref] = len(self.nodes)

    def _read(self, op: Operation) -> None:
        call = read(op)
        if call is None:
            name, results = op.operation.name, list(op.results)
            arguments: dict[str, Any] = {str(i): Tensor(self._refs[v]) for i, v in enumerate(op.operands)}
        else:
            name, results = call.name, _flat(results_of(op))
            arguments = {key: self._argument(a) for key, a in _named(call).items()}
        refs = self.add(name, arguments, [self._type(r.type) for r in results], op)
        for ref, result in zip(refs, results, strict=True):
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
