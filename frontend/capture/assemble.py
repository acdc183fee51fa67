"""Finish a traced joint graph: named inputs and outputs in order, tied parameters merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch._functorch._aot_autograd.descriptors import (
    BufferAOTInput,
    GradAOTOutput,
    InputMutationAOTOutput,
    ParamAOTInput,
    PlainAOTInput,
    PlainAOTOutput,
    TangentAOTInput,
)

from ..captured import META_KEY, CapturedOutput, CapturedTensor, CaptureError, InputKind, Origin, OutputKind
from ..graph.random_op import RANDOM, RANDOM_STATE
from ..graph.regions import drop_assertions
from ..trace_errors import shared_memory
from .model_parameters import merged_buffers, merged_parameters


@dataclass(frozen=True)
class Names:
    """The meaning of the names in a traced graph."""

    parameters: Mapping[str, str]
    """Every name of a parameter -> its canonical name; likewise for buffers."""
    buffers: Mapping[str, str]
    constants: Mapping[str, str]
    """Full name in the traced module -> the constant's name."""
    inputs: Sequence[str]
    outputs: Sequence[str]
    prefix: str
    """The prefix of the model's names in the traced module."""
    differentiable: frozenset[str] = frozenset()
    """The inputs that require a gradient."""

    def own(self, target: str) -> tuple[InputKind, str]:
        """Kind and canonical name of the parameter, buffer or constant `target` of the traced module."""
        if target in self.constants:
            return InputKind.CONSTANT, self.constants[target]
        name = target.removeprefix(self.prefix)
        if name in self.parameters:
            return InputKind.PARAMETER, self.parameters[name]
        return InputKind.BUFFER, self.buffers[name]


@dataclass
class Assembled:
    """A finished graph with its inputs and outputs."""

    inputs: list[CapturedTensor] = field(default_factory=list)
    outputs: list[CapturedOutput] = field(default_factory=list)
    unused_parameters: tuple[str, ...] = ()


def model_names(
    model: nn.Module,
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: Sequence[str],
    prefix: str,
    held: Mapping[str, str],
) -> Names:
    """The names of one trace of `model`; constants keep the model's name if they have one.

    `held` are buffers that are not the model's: by full name in the traced module, their names.
    """
    return Names(
        parameters={alias: entry.name for entry in merged_parameters(model) for alias in entry.aliases},
        buffers={alias: entry.name for entry in merged_buffers(model) for alias in entry.aliases} | dict(held),
        constants={name: name.removeprefix(prefix) for name in constants},
        inputs=inputs,
        outputs=outputs,
        prefix=prefix,
    )


def assemble(joint: fx.GraphModule, model: nn.Module, names: Names) -> Assembled:
    """Rewrite `joint` in place so that it takes and returns flat tensors in the documented order.

    Inputs: parameters, buffers (both in the model's order), constants, inputs, the RNG state if there are random ops,
    tangents (by output). Outputs: results, gradients (of parameters, then of inputs), buffers. Errors: E0216 if the
    forward changes an input or a parameter, or writes a value with a gradient into a buffer.
    """
    graph = joint.graph
    drop_assertions(graph)
    results = _describe_results(graph, names)
    tensors, placeholders = _merge_placeholders(graph, model, names)
    _add_random_state(graph, tensors, placeholders)
    _order_placeholders(placeholders)
    assembled = Assembled(inputs=tensors)
    assembled.unused_parameters = _set_results(graph, results, assembled)
    graph.set_codegen(fx.graph.CodeGen())
    graph.eliminate_dead_code()
    joint.recompile()
    return assembled


@dataclass
class _Results:
    outputs: dict[int, fx.Node] = field(default_factory=dict)
    gradients: dict[str, list[fx.Node]] = field(default_factory=dict)
    buffers: dict[str, fx.Node] = field(default_factory=dict)
    described_gradients: int = 0


def _describe_results(graph: fx.Graph, names: Names) -> _Results:
    output = graph.output_node()
    values: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    results = _Results()
    for value, description in zip(values, output.meta["desc"], strict=True):
        match description:
            case PlainAOTOutput(idx=index):
                results.outputs[index] = value
            case GradAOTOutput(grad_of=ParamAOTInput(target=target)):
                results.described_gradients += 1
                gradients = results.gradients.setdefault(names.own(target)[1], [])
                if value is not None:
                    gradients.append(value)
            case GradAOTOutput(grad_of=PlainAOTInput(idx=index)):
                results.gradients[names.inputs[index]] = [] if value is None else [value]
            case InputMutationAOTOutput(mutated_input=BufferAOTInput(target=target)):
                kind, name = names.own(target)
                if kind is InputKind.CONSTANT:
                    raise _mutated(f'tensor "{name}"', "make it a buffer of the module (register_buffer)")
                results.buffers[name] = value
            case InputMutationAOTOutput(mutated_input=ParamAOTInput(target=target)):
                raise _mutated(f'parameter "{names.own(target)[1]}"', "update parameters outside of forward")
            case InputMutationAOTOutput(mutated_input=PlainAOTInput(idx=index)):
                raise _mutated(
                    f'input "{names.inputs[index]}"', "work on a copy of it, .clone(), and return the result"
                )
            case InputMutationAOTOutput():
                raise shared_memory()
            case None:
                pass
            case _:
                raise CaptureError(
                    "E0228",
                    f"the forward has a side effect, which torch reports as {type(description).__name__}",
                    expected="ops without side effects",
                    help="remove checks of values from forward, such as by torch.linalg.inv_ex in place of inv",
                )
    return results


def _mutated(target: str, help: str) -> CaptureError:
    return CaptureError("E0216", f"forward changes its {target} in place", help=help)


def _merge_placeholders(graph: fx.Graph, model: nn.Module, names: Names) -> tuple[list[CapturedTensor], list[fx.Node]]:
    """The inputs and their placeholders in final order; the names of a tied tensor are merged."""
    aliases = {entry.name: entry.aliases for entry in (*merged_parameters(model), *merged_buffers(model))}
    trainable = {entry.name: entry.tensor.requires_grad for entry in merged_parameters(model)}
    positions = {name: index for index, name in enumerate((*dict.fromkeys(names.parameters.values()),))}
    positions |= {name: index for index, name in enumerate((*dict.fromkeys(names.buffers.values()),))}
    merged: dict[tuple[InputKind, str], tuple[CapturedTensor, fx.Node]] = {}
    for node in graph.find_nodes(op="placeholder"):
        kind, name, index = _describe_input(node.meta["desc"], names)
        if (kind, name) in merged:
            node.replace_all_uses_with(merged[kind, name][1])
            graph.erase_node(node)
            continue
        value: torch.Tensor = node.meta["val"]
        wants_gradient = kind is InputKind.INPUT and name in names.differentiable
        requires_grad = wants_gradient or (kind is InputKind.PARAMETER and trainable[name])
        known = aliases.get(name, (name,)) if kind in (InputKind.PARAMETER, InputKind.BUFFER) else ()
        tensor = CapturedTensor(name, kind, known, tuple(value.shape), value.dtype, requires_grad, index)
        merged[kind, name] = tensor, node
    kinds = list(InputKind)
    pairs = sorted(merged.values(), key=lambda p: (kinds.index(p[0].kind), positions.get(p[0].name, 0), p[0].index))
    return [tensor for tensor, _ in pairs], [node for _, node in pairs]


def _describe_input(description: Any, names: Names) -> tuple[InputKind, str, int]:
    match description:
        case ParamAOTInput(target=target) | BufferAOTInput(target=target):
            return (*names.own(target), -1)
        case PlainAOTInput(idx=index):
            return InputKind.INPUT, names.inputs[index], index
        case TangentAOTInput(output=PlainAOTOutput(idx=index)):
            return InputKind.TANGENT, names.outputs[index], index
        case TangentAOTInput(output=InputMutationAOTOutput(mutated_input=BufferAOTInput(target=target))):
            raise CaptureError(
                "E0216",
                f'forward writes a value that requires a gradient into its buffer "{names.own(target)[1]}"',
                expected="a value without a gradient, as a buffer outlives the step",
                help="write value.detach(), or call the model under torch.no_grad() where it is not trained",
            )
        case _:
            raise AssertionError(f"unknown input of a joint graph: {description}")


def _add_random_state(graph: fx.Graph, tensors: list[CapturedTensor], placeholders: list[fx.Node]) -> None:
    """Add the RNG state as an input before the tangents, and pass it to the random ops."""
    random_ops = graph.find_nodes(op="call_function", target=RANDOM)
    if not random_ops:
        return
    with graph.inserting_before(placeholders[0]):
        state = graph.placeholder("random_state")
    with placeholders[0].meta["val"].fake_mode:
        state.meta["val"] = torch.empty(RANDOM_STATE.shape, dtype=RANDOM_STATE.dtype)
    state.meta[META_KEY] = Origin()
    for node in random_ops:
        node.args = (state, *node.args[1:])
    position = sum(tensor.kind is not InputKind.TANGENT for tensor in tensors)
    tensors.insert(position, RANDOM_STATE)
    placeholders.insert(position, state)


def _order_placeholders(placeholders: list[fx.Node]) -> None:
    for before, node in pairwise(placeholders):
        before.append(node)


def _set_results(graph: fx.Graph, results: _Results, assembled: Assembled) -> tuple[str, ...]:
    """Write the output node and the list of outputs; returns the names of tensors that lack a required gradient."""
    position = {(tensor.kind, tensor.name): index for index, tensor in enumerate(assembled.inputs)}
    values: list[fx.Node] = []
    unused = []
    output = graph.output_node()
    for index in sorted(results.outputs):
        assembled.outputs.append(CapturedOutput(OutputKind.OUTPUT, "", index))
        values.append(results.outputs[index])
    for tensor in assembled.inputs:
        if not tensor.requires_grad or tensor.name not in results.gradients:
            continue
        gradients = results.gradients[tensor.name]
        if not gradients:
            unused.append(tensor.name)
            continue
        index = position[tensor.kind, tensor.name]
        assembled.outputs.append(CapturedOutput(OutputKind.GRADIENT, tensor.name, index))
        values.append(_sum(graph, output, gradients))
    for tensor in assembled.inputs:
        if tensor.kind is InputKind.BUFFER and tensor.name in results.buffers:
            index = position[InputKind.BUFFER, tensor.name]
            assembled.outputs.append(CapturedOutput(OutputKind.BUFFER, tensor.name, index))
            values.append(results.buffers[tensor.name])
    output.args = (tuple(values),)
    output.meta.pop("desc", None)
    return tuple(unused)


def _sum(graph: fx.Graph, before: fx.Node, gradients: list[fx.Node]) -> fx.Node:
    """The gradient of a tied parameter; usually autograd has already summed it under one name."""
    total = gradients[0]
    for gradient in gradients[1:]:
        with graph.inserting_before(before):
            total = graph.call_function(torch.ops.aten.add.Tensor, (total, gradient))
        total.meta["val"] = gradient.meta["val"]
        origin = gradient.meta.get(META_KEY, Origin())
        total.meta[META_KEY] = Origin(origin.module_path, origin.file, origin.line, True, -1)
    return total
