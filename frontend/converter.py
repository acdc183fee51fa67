"""Convert the nodes of a captured graph to operations of level `aten`.

IR values have no strides and no aliases: views become reshapes, and copies that change nothing disappear. A Python
scalar in the position of a tensor selects the op's scalar overload, or becomes a 0-d constant.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import fx

from ..diagnostics import StrettoError
from ..ir.bindings import Location, Type, Value, mlir
from ..ir.dialects.schemas import Kind, definitions
from ..ir.locations import Origin, to_location
from ..ir.operations import Call, build
from ..ir.types import TensorType, absent, from_mlir, to_mlir
from ..ops.table import find_op
from .captured import CaptureError, origin_of
from .graph.random_op import NUMBER, RANDOM
from .graph.unknown_ops import unknown_op
from .metadata import source_span

_RENAMED = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
}
_STRIDELESS = {
    "aten.new_empty_strided.default": ("aten.new_empty.default", 2),
    "aten.empty_strided.default": ("aten.empty.memory_format", 1),
}
"""Ops that equal another op but for strides: its name, and the number of shared arguments."""
_RESHAPES = frozenset({"aten.reshape.default"})
"""Ops whose sizes may have a -1, which is resolved here."""
_IDENTITIES = frozenset(
    {
        "aten.clone.default",
        "aten.detach.default",
        "aten.alias.default",
        "aten.contiguous.default",
        "aten.lift_fresh_copy.default",
    }
)
"""Ops that return their operand's value, and matter only for storage."""
_EPSILON = torch.finfo(torch.float32).eps
"""The default epsilon of ops such as rms_norm, which depends on the dtype of the trace."""
_STRIDED = frozenset({"aten.as_strided.default", "aten.as_strided_scatter.default", "aten.set_.source_Tensor"})


class Floats(Enum):
    """The treatment of a graph's floating dtypes."""

    AS_CAPTURED = "as captured"
    FLOAT64 = "float64"
    """All are raised to float64, those of casts and constants included, to compare results."""

    def of(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype used in place of `dtype`."""
        if self is not Floats.FLOAT64:
            return dtype
        return torch.float64 if dtype.is_floating_point else torch.complex128 if dtype.is_complex else dtype


class Converter:
    """Converts nodes in order; `values` has the IR values of converted nodes.

    `place` maps the origins of nodes to those of operations.
    """

    def __init__(self, floats: Floats, place: Callable[[Origin], Origin] = lambda origin: origin) -> None:
        self.floats = floats
        self.values: dict[fx.Node, Any] = {}
        self.aliases: dict[fx.Node, fx.Node] = {}
        """The node whose value a node returns, for those that change nothing."""
        self.numbers: dict[fx.Node, Value] = {}
        """The numbers of random ops, where they are arguments of a function."""
        self._place = place

    def find_aliases(self, nodes: Iterable[fx.Node]) -> None:
        """Fill `aliases` for all nodes of a graph."""
        for node in nodes:
            if node.op == "call_function" and self._is_alias(node):
                self._add_alias(node)

    def _is_alias(self, node: fx.Node) -> bool:
        if not isinstance(node.target, torch._ops.OpOverload):
            return False
        name = _overload_name(node.target)
        return name in _IDENTITIES or self._is_noop_cast(name, node)

    def _add_alias(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        self.aliases[node] = self.aliases.get(source, source)

    def type_of(self, node: fx.Node) -> Type:
        """The type of a node's one result."""
        return self._type(node.meta["val"])

    def convert(self, node: fx.Node) -> None:
        """Add the operation of one node."""
        inputs: Sequence[Any] = node.args
        if node.target is operator.getitem:
            source, index = inputs
            self.values[node] = self._value(source)[index]
            return
        if node.target is RANDOM:
            self.values[node] = self._random(node)
            return
        name = _name(node)
        if self._is_alias(node):
            self._add_alias(node)
            return
        loc = self._location(node)
        try:
            result_types = self._result_types(node)
        except StrettoError as error:
            raise _placed(node, error) from None
        name, args = self._scalars(name, [self._argument(a) for a in inputs], loc)
        if name in _STRIDELESS:
            name, shared = _STRIDELESS[name]
            args = args[:shared]
        if name in _RESHAPES:
            args[1] = list(node.meta["val"].shape)
        kwargs = {key: self._argument(value) for key, value in node.kwargs.items()}
        self._fix_default_dtype(name, node, args, kwargs, loc)
        results = build(Call(name, tuple(args), kwargs), result_types, loc)
        self.values[node] = results[0] if _is_single(node.meta["val"]) else _as_fx(node.meta["val"], results)

    def _fix_default_dtype(self, name: str, node: fx.Node, args: list[Any], kwargs: dict[str, Any], loc: Any) -> None:
        """Make a result's dtype independent of torch's default dtype: state it, or cast integer operands.

        Torch gives its default dtype to floats that it makes of Python numbers, and of integers with them.
        """
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or kwargs.get("dtype") is not None:
            return
        expected = self.floats.of(value.dtype)
        operands = [operand.meta["val"] for operand in node.all_input_nodes]
        if not operands and any(argument.name == "dtype" for argument in definitions()[name].arguments):
            kwargs["dtype"] = expected
        elif (
            expected != torch.float32 and operands and not any(_is_float(v) for v in operands) and ".where" not in name
        ):
            type_ = {
                index: TensorType(expected, from_mlir(a.type).shape) for index, a in enumerate(args) if _is_value(a)
            }
            for index, cast in type_.items():
                [args[index]] = build(
                    Call("aten._to_copy.default", (args[index],), {"dtype": expected}), [to_mlir(cast)], loc
                )

    def random_number(self, node: fx.Node) -> Value:
        """The number of a random op: a value outside of any layer, so that equal layers can be folded."""
        call = Call("aten.scalar_tensor.default", (node.args[NUMBER],), {"dtype": torch.int64})
        [number] = build(call, [to_mlir(TensorType(torch.int64, ()))], to_location(Origin()))
        return number

    def _random(self, node: fx.Node) -> Any:
        state, like, _size, _number, below = node.args
        number = self.numbers[node] if node in self.numbers else self.random_number(node)
        args = (self._argument(state), number, self._argument(like), list(node.meta["val"].shape), below)
        [drawn] = build(Call("nn.random", args), [self._type(node.meta["val"])], self._location(node))
        return drawn

    def returned(self, node: fx.Node) -> list[Any]:
        """The values that the graph's output node returns."""
        [outputs] = node.args
        return [self._value(v) for v in outputs]  # type: ignore[union-attr, arg-type]

    def _is_noop_cast(self, name: str, node: fx.Node) -> bool:
        if name != "aten._to_copy.default":
            return False
        inputs: Sequence[Any] = node.args
        source: torch.dtype = inputs[0].meta["val"].dtype
        target: Any = node.kwargs.get("dtype") or source
        return self.floats.of(target) == self.floats.of(source)

    def _value(self, node: fx.Node) -> Any:
        return self.values[self.aliases.get(node, node)]

    def _location(self, node: fx.Node) -> Location:
        return to_location(self._place(_origin(node)))

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self._value(argument)
        if isinstance(argument, (list, tuple)):
            return [self._argument(a) for a in argument]
        if isinstance(argument, float) and self.floats is Floats.FLOAT64 and argument == _EPSILON:
            return torch.finfo(torch.float64).eps
        return self.floats.of(argument) if isinstance(argument, torch.dtype) else argument

    def _scalars(self, name: str, args: list[Any], loc: Any) -> tuple[str, list[Any]]:
        """Replace Python scalars in positions of tensors: by the scalar overload, or by 0-d tensors."""
        arguments = definitions()[name].arguments
        places = [
            i
            for i, value in enumerate(args)
            if isinstance(value, (bool, int, float)) and arguments[i].kind is Kind.TENSOR
        ]
        if not places:
            return name, args
        scalar = name.replace(".Tensor", ".Scalar")
        if places == [1] and scalar in definitions() and definitions()[scalar].arguments[1].kind is Kind.CONSTANT:
            return scalar, args
        for i in places:
            dtype = self.floats.of(torch.tensor(args[i]).dtype)
            [args[i]] = build(
                Call("aten.scalar_tensor.default", (args[i],), {"dtype": dtype}), [to_mlir(TensorType(dtype, ()))], loc
            )
        return name, args

    def _result_types(self, node: fx.Node) -> list[Any]:
        value = node.meta["val"]
        results = definitions()[_name(node)].results
        if results == ("Tensor[]",):
            return [[self._type(v) for v in value]]
        return [self._type(v) for v in (value if isinstance(value, (tuple, list)) else (value,))]

    def _type(self, value: torch.Tensor | None) -> Type:
        if value is None:
            return absent()
        return to_mlir(TensorType(self.floats.of(value.dtype), tuple(value.shape)))


def _is_float(value: Any) -> bool:
    """Whether a result, or one of several, is floating or complex."""
    tensors = value if not _is_single(value) else (value,)
    return any(tensor is not None and (tensor.is_floating_point() or tensor.is_complex()) for tensor in tensors)


def _is_value(argument: Any) -> bool:
    return isinstance(argument, mlir.Value)


def _is_single(value: Any) -> bool:
    return not isinstance(value, (tuple, list))


def _as_fx(value: Sequence[Any], results: list[Any]) -> list[Value]:
    """The results as `getitem` indexes them: the elements of a single list, or one value per result."""
    return results[0] if len(results) == 1 and isinstance(results[0], list) else results


@cache
def _overload_name(target: torch._ops.OpOverload) -> str:
    name = str(target)
    return _RENAMED.get(name, name)


def _name(node: fx.Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        raise unsupported(node, f'"{node.target}", which is not a torch operator')
    name = _overload_name(node.target)
    if name in _STRIDED:
        raise unsupported(node, f'"{name}", whose result depends on the memory layout of its operand')
    entry = find_op(_STRIDELESS.get(name, (name, 0))[0])
    if name not in definitions() or entry is None or entry.only_in_references:
        raise unknown_op(node, name)
    return name


def unsupported(node: fx.Node, item: str) -> CaptureError:
    """The error E0230 for a node that has no operation."""
    origin = _origin(node)
    return CaptureError(
        "E0230",
        f"the graph holds {item}, which Stretto does not compile: {origin}",
        span=source_span(node),
        help="write this part of the model with other torch functions",
    )


def _placed(node: fx.Node, error: StrettoError) -> CaptureError:
    """An error about the type of a node's result, with the node's source span."""
    return CaptureError(
        error.code,
        error.message,
        span=source_span(node),
        expected=error.expected,
        help="write complex products with real and imaginary parts, or compute in another dtype",
    )


def _origin(node: fx.Node) -> Origin:
    captured = origin_of(node)
    return Origin(captured.module_path, captured.file, captured.line, captured.backward)
