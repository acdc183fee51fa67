"""Convert a captured graph to a module of level `aten`: `main`, and a function for each distinct repeated layer."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import fx

from ..ir.bindings import Type, mlir
from ..ir.dialects.context import context
from ..ir.layers import numbered_names, unnumbered
from ..ir.locations import Origin, to_location
from ..ir.module import Module, Record, build_call, build_function, entry, finish_function
from ..ir.types import TensorType, to_mlir
from .captured import Capture, CapturedOutput, CapturedTensor, InputKind, Mode, OutputKind
from .converter import Converter, unsupported
from .converter import Floats as Floats
from .graph.integer_values import integer_bounds
from .repeated_layers import Part, RepeatedLayers


class Layers(Enum):
    """The form of layers that are equal, forward and backward."""

    WRITTEN_OUT = "written out"
    FOLDED = "folded"
    """One function for the forward of all, and one for the backward; `passes/layers/joint_layers.py` joins them."""


def to_module(
    capture: Capture,
    owners: Mapping[str, str] | None = None,
    *,
    floats: Floats = Floats.AS_CAPTURED,
    buffers: Mapping[str, torch.Tensor] | None = None,
    layers: Layers = Layers.WRITTEN_OUT,
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
    converter = Converter(floats)
    nodes = list(capture.graph.graph.nodes)
    order: Sequence[fx.Node | Part] = [node for node in nodes if node.op != "placeholder"]
    functions: dict[Part, str] = {}
    if layers is Layers.FOLDED:
        converter.find_aliases(nodes)
        repeated = RepeatedLayers(nodes, converter.aliases).find()
        order = (*repeated.order, nodes[-1])
        functions = _functions(module, repeated.groups, converter)
    placeholders = (node for node in nodes if node.op == "placeholder")
    converter.values.update(zip(placeholders, entry(main).arguments, strict=True))
    results: list[Any] = []
    with context(), mlir.InsertionPoint(entry(main)):
        for item in order:
            if isinstance(item, Part):
                _call(functions[item], item, converter)
            elif item.op == "call_function":
                converter.convert(item)
            elif item.op == "output":
                results = converter.returned(item)
            else:
                raise unsupported(item, f'a graph node of kind "{item.op}"')
    finish_function(main, results, [_result_record(o, capture) for o in capture.outputs])
    return module


def _functions(module: Module, groups: Sequence[Sequence[Part]], converter: Converter) -> dict[Part, str]:
    """Convert the first part of each group to a function; the names of the functions by part."""
    names: dict[Part, str] = {}
    for name, group in zip(numbered_names([g[0].layer.function_name for g in groups]), groups, strict=True):
        _function(module, name, group[0], converter)
        names.update(dict.fromkeys(group, name))
    return names


def _function(module: Module, name: str, part: Part, outside: Converter) -> None:
    inside = Converter(outside.floats, unnumbered)
    inside.aliases = outside.aliases
    own = set(part.nodes)
    function = build_function(module, name, [_input_type(node, own, inside) for node in part.inputs])
    for node, argument in zip(part.inputs, entry(function).arguments, strict=True):
        (inside.numbers if node in own else inside.values)[node] = argument
    with context(), mlir.InsertionPoint(entry(function)):
        for node in part.nodes:
            inside.convert(node)
    finish_function(function, [inside.values[node] for node in part.exports])


def _input_type(node: fx.Node, own: Container[fx.Node], converter: Converter) -> Type:
    return to_mlir(TensorType(torch.int64, ())) if node in own else converter.type_of(node)


def _call(name: str, part: Part, converter: Converter) -> None:
    """Call the function of a part in `main`; random ops of equal layers differ by their number."""
    own = set(part.nodes)
    operands = [converter.random_number(node) if node in own else converter.values[node] for node in part.inputs]
    loc = to_location(Origin(part.layer.path, backward=part.layer.backward))
    results = build_call(name, operands, [converter.type_of(node) for node in part.exports], loc)
    converter.values.update(zip(part.exports, results, strict=True))


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
