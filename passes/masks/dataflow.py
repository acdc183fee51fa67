"""What is known of values, followed back through operations, through calls of functions and into them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.schemas import definitions
from ...ir.module import Module, callee, name_of, operations, terminator
from ...ir.operations import Call, read
from ...ir.types import TensorType, from_mlir, is_tensor
from . import elementwise, views
from .known import Known, Ramp, either, everywhere

_DEEPEST = 200
"""How many operations a value is followed back through: the masks of models take some thirty."""


class KnownValues:
    """What is known of the values of a module. A function's argument is what all calls pass."""

    def __init__(self, module: Module) -> None:
        self._functions = module.functions()
        self._calls: dict[str, list[Operation]] = {}
        for function in self._functions.values():
            for op in operations(function):
                name = callee(op)
                if name is not None:
                    self._calls.setdefault(name, []).append(op)
        self._known: dict[Value, Known | None] = {}
        self._depth = 0

    def of(self, value: Value) -> Known | None:
        """What is known of a value; None: nothing."""
        if value not in self._known:
            if self._depth >= _DEEPEST or not is_tensor(value.type):
                return None
            self._known[value] = None  # while it is looked for
            self._depth += 1
            self._known[value] = self._found(value)
            self._depth -= 1
        return self._known[value]

    def _found(self, value: Value) -> Known | None:
        if not isinstance(value.owner, mlir.Operation | mlir.OpView):
            return self._of_argument(mlir.BlockArgument(value))
        name = callee(value.owner)
        if name is not None:
            function = self._functions.get(name)
            position = mlir.OpResult(value).result_number
            return None if function is None else self.of(list(terminator(function).operands)[position])
        call = read(value.owner)
        return None if call is None else self._of_result(call, from_mlir(value.type))

    def _of_argument(self, argument: mlir.BlockArgument) -> Known | None:
        """What all calls together may pass for an argument."""
        calls = self._calls.get(name_of(argument.owner.owner), [])
        index = argument.arg_number
        if not calls or any(index >= len(call.operands) for call in calls):
            return None
        return reduce(either, [self.of(call.operands[index]) for call in calls])

    def _of_result(self, call: Call, out: TensorType) -> Known | None:
        if not call.name.startswith("aten."):
            return None
        name, arguments = call.name.removeprefix("aten."), _named(call)
        made = views.made(name, arguments, out)
        if made is not None:
            return made
        if name == "cat.default":
            parts = [(self.of(each), from_mlir(each.type).shape) for each in arguments["tensors"]]
            return views.joined(parts, int(arguments.get("dim", 0)), out.shape)
        if name == "index.Tensor":
            whole = [None if each is None else self.of(each) for each in arguments["indices"]]
            rank = len(from_mlir(arguments["self"].type).shape)
            return views.indexed(self.of(arguments["self"]), whole, rank, out.shape)
        operand = arguments.get("self")
        if isinstance(operand, mlir.Value):
            known, shape = self.of(operand), from_mlir(operand.type).shape
            if name == "cumsum.default":
                is_zero = known in (everywhere(0, len(shape)), everywhere(False, len(shape)))
                return Ramp((0,) * len(shape), 0) if is_zero and not out.dtype.is_floating_point else None
            if name.startswith(("tril.", "triu.")):
                return views.triangular(name, arguments, known, shape)
            viewed = None if known is None else views.view(name, arguments, known, shape, out.shape)
            if viewed is not None:
                return viewed
        if name not in elementwise.NAMES:
            return None
        return elementwise.result(name, arguments, self._operands(arguments, out), out)

    def _operands(self, arguments: Mapping[str, Any], out: TensorType) -> dict[str, elementwise.Operand]:
        """What is known of the operands by elements, with the dims of the result."""
        operands: dict[str, elementwise.Operand] = {}
        for name in ("condition", "self", "mask", "other", "value"):
            given = arguments.get(name)
            if isinstance(given, mlir.Value):
                operands[name] = views.broadcast(self.of(given), out.shape)
            elif given is not None:
                operands[name] = given
        return operands


def _named(call: Call) -> dict[str, Any]:
    positional = zip(definitions()[call.name].arguments, call.args, strict=False)
    return {argument.name: value for argument, value in positional} | call.kwargs
