"""Convert a captured graph to a module of level `aten`.

IR values have no strides and no aliases: views become reshapes, and copies that change nothing disappear. A Python
scalar in the position of a tensor selects the op's scalar overload, or becomes a 0-d constant.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import fx

from ..diagnostics import StrettoError
from ..ir.bindings import Type, Value, mlir
from ..ir.dialects.context import context
from ..ir.dialects.schemas import Kind, definitions
from ..ir.locations import Origin, to_location
from ..ir.module import Module, Record, build_function, entry, finish_function
from ..ir.operations import Call, build
from ..ir.types import TensorType, absent, from_mlir, to_mlir
from ..ops.table import find_op
from .captured import Capture, CapturedOutput, CapturedTensor, CaptureError, InputKind, Mode, OutputKind, origin_of
from .graph.integer_values import integer_bounds
from .graph.random_op import RANDOM
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


def to_module(
    capture: Capture,
    owners: Mapping[str, str] | None = None,
    *,
    floats: Floats = Floats.AS_CAPTURED,
    buffers: Mapping[str, torch.Tensor] | None = None,
) -> Module:
    """The captured graph as function `main`; arguments and results in the order of `capture.inputs` and `.outputs`.

    `owners` has by parameter the kind of module that owns it (`capture/model_parameters.py`), for a plan's roles. The
    records of integer constants, and of integer `buffers` (by name), have the range of their values.
    """
    module = Module.empty()
    types = [to_mlir(TensorType(floats.of(t.dtype), t.shape)) for t in capture.inputs]
    bounds = integer_bounds({**(buffers or {}), **capture.constants})
    records = [_argument_record(t, owners or {}, bounds) for t in capture.inputs]
    main = build_function(module, "main", types, records=records)
    converter = _Converter(floats)
    with context(), mlir.InsertionPoint(entry(main)):
        arguments = iter(entry(main).arguments)
        results: list[Any] = []
        for node in capture.graph.graph.nodes:
            match node.op:
                case "placeholder":
                    converter.values[node] = next(arguments)
                case "call_function":
                    converter.convert(node)
                case "output":
                    results = converter.returned(node)
                case _:
                    raise _unsupported(node, f'a graph node of kind "{node.op}"')
    finish_function(main, results, [_result_record(o, capture) for o in capture.outputs])
    return module


class _Converter:
    """Converts nodes in order; `values` has the IR values of converted nodes."""

    def __init__(self, floats: Floats) -> None:
        self.floats = floats
        self.values: dict[fx.Node, Any] = {}

    def convert(self, node: fx.Node) -> None:
        """Add the operation of one node."""
        inputs: Sequence[Any] = node.args
        if node.target is operator.getitem:
            source, index = inputs
            self.values[node] = self.values[source][index]
            return
        if node.target is RANDOM:
            self.values[node] = self._random(node)
            return
        name = _name(node)
        if name in _IDENTITIES or self._is_noop_cast(name, node):
            self.values[node] = self.values[inputs[0]]
            return
        loc = to_location(_origin(node))
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

    def _random(self, node: fx.Node) -> Any:
        """Convert a random op. Its number is a value outside of any layer, so that equal layers can be folded."""
        state, like, _size, number, below = node.args
        type_ = to_mlir(TensorType(torch.int64, ()))
        call = Call("aten.scalar_tensor.default", (number,), {"dtype": torch.int64})
        [numbered] = build(call, [type_], to_location(Origin()))
        args = (self._argument(state), numbered, self._argument(like), list(node.meta["val"].shape), below)
        [drawn] = build(Call("nn.random", args), [self._type(node.meta["val"])], to_location(_origin(node)))
        return drawn

    def returned(self, node: fx.Node) -> list[Any]:
        """The values that the graph's output node returns."""
        [outputs] = node.args
        return [self.values[v] for v in outputs]  # type: ignore[union-attr, index]

    def _is_noop_cast(self, name: str, node: fx.Node) -> bool:
        if name != "aten._to_copy.default":
            return False
        inputs: Sequence[Any] = node.args
        source: torch.dtype = inputs[0].meta["val"].dtype
        target: Any = node.kwargs.get("dtype") or source
        return self.floats.of(target) == self.floats.of(source)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument]
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
        raise _unsupported(node, f'"{node.target}", which is not a torch operator')
    name = _overload_name(node.target)
    if name in _STRIDED:
        raise _unsupported(node, f'"{name}", whose result depends on the memory layout of its operand')
    entry = find_op(_STRIDELESS.get(name, (name, 0))[0])
    if name not in definitions() or entry is None or entry.only_in_references:
        raise unknown_op(node, name)
    return name


def _unsupported(node: fx.Node, item: str) -> CaptureError:
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


def _argument_record(tensor: CapturedTensor, owners: Mapping[str, str], bounds: Mapping[str, Sequence[int]]) -> Record:
    record: Record = {"kind": str(tensor.kind), "name": tensor.name, "index": tensor.index}
    if tensor.kind is InputKind.PARAMETER or tensor.requires_grad:
        record["requires_grad"] = tensor.requires_grad
    if tensor.kind is InputKind.PARAMETER:
        record["owner"] = owners.get(tensor.name, "other")
    if len(tensor.aliases) > 1:
        record["aliases"] = list(tensor.aliases)
    if tensor.kind in (InputKind.BUFFER, InputKind.CONSTANT) and tensor.name in bounds:
        record["range"] = list(bounds[tensor.name])
    return record


def _result_record(output: CapturedOutput, capture: Capture) -> Record:
    record: Record = {"kind": str(output.kind), "name": output.name, "index": output.index}
    if output.kind is OutputKind.OUTPUT:
        # A differentiable output goes to a loss outside of the program, which needs the global tensor.
        record["whole"] = capture.mode is Mode.INFER or output.index in capture.differentiable
    return record
