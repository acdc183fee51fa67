"""Derive the backward of a recognised forward as a pattern, by tracing autograd.

The forward's operations run again on meta tensors, with gradients. So the pattern fits the variant at hand (dtypes,
casts, shapes, how the mean is computed) and the installed torch, without a table of cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....ir.dialects.schemas import definitions
from ....ir.types import TensorType
from .canonical import overload
from .dataflow import Dataflow, Node, Ref, Tensor
from .pattern import Match, matches
from .tracing import Step, Trace, Traced, trace


@dataclass(frozen=True)
class Region:
    """A recognised forward: nodes in order, from inputs to one output."""

    nodes: tuple[Node, ...]
    inputs: tuple[Ref, ...]
    output: Ref

    @property
    def values(self) -> tuple[Ref, ...]:
        """The inputs and then every result, in order."""
        return (*self.inputs, *(ref for node in self.nodes for ref in node.results))


@dataclass(frozen=True)
class Derived:
    """The traced backward of a region."""

    graph: Dataflow
    nodes: tuple[Node, ...]
    """The backward's own nodes."""
    forward: tuple[Ref, ...]
    """The values of `graph` that are the region's `values`."""
    grad: Ref
    """The gradient of the region's output."""
    gradients: tuple[tuple[Ref, ...], ...]
    """For each trained input, the terms whose sum is its gradient."""

    def matches(self, graph: Dataflow, bound: Mapping[Ref, Ref]) -> Iterator[Match]:
        """The matches of this backward in `graph`; `bound` maps the values that are known."""
        yield from matches(self.graph, self.nodes, graph, bound)


class Derivations:
    """Cache of derived backwards by the region's structure, so that equal layers are derived once."""

    def __init__(self) -> None:
        self._derived: dict[Any, Derived] = {}

    def backward(self, graph: Dataflow, region: Region, trained: Sequence[int]) -> Derived:
        """The backward of a region with respect to its inputs of the indices `trained`."""
        key = (_structure(graph, region), tuple(trained))
        if key not in self._derived:
            self._derived[key] = _derive(graph, region, trained)
        return self._derived[key]


def _structure(graph: Dataflow, region: Region) -> Any:
    numbers = {ref: i for i, ref in enumerate(region.values)}

    def shape_of(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return Tensor(numbers[argument.ref])
        return tuple(shape_of(a) for a in argument) if isinstance(argument, tuple) else argument

    nodes = tuple((n.name, tuple((k, shape_of(a)) for k, a in n.arguments.items())) for n in region.nodes)
    return nodes, tuple(graph.types[ref] for ref in region.values), numbers[region.output]


def _derive(graph: Dataflow, region: Region, trained: Sequence[int]) -> Derived:
    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        *inputs, grad = tensors
        leaves = [t.detach().requires_grad_() if i in trained else t for i, t in enumerate(inputs)]
        values = _replay(graph, region, leaves)
        trained_leaves = [leaves[i] for i in trained]
        return [grad, *values, *torch.autograd.grad(values[region.values.index(region.output)], trained_leaves, grad)]

    types = [graph.type_of(ref) for ref in (*region.inputs, region.output)]
    traced = trace(run, types)
    pattern, numbers = _graph_of(traced, types)
    grad, *refs = (numbers[n] for n in traced.outputs if n is not None)
    forward = tuple(refs[: len(region.values)])
    gradients = tuple(tuple(_terms(pattern, ref)) for ref in refs[len(region.values) :])
    nodes = _cone(pattern, [term for terms in gradients for term in terms], {grad, *forward})
    return Derived(pattern, nodes, forward, grad, gradients)


def _replay(graph: Dataflow, region: Region, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The values of a region, computed by torch."""
    values = dict(zip(region.inputs, inputs, strict=True))

    def fill(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return values[argument.ref]
        return [fill(a) for a in argument] if isinstance(argument, tuple) else argument

    for node in region.nodes:
        arguments = {key: fill(a) for key, a in node.arguments.items()}
        arguments |= _arguments_of_type(node.name, graph.type_of(node.results[0]))
        returned = overload(node.name)(**arguments)
        results = returned if isinstance(returned, (tuple, list)) else (returned,)
        values.update(zip(node.results, results, strict=True))
    return [values[ref] for ref in region.values]


def _arguments_of_type(name: str, type_: TensorType) -> dict[str, Any]:
    """The arguments that the canonical form of an operation omits, from its result type."""
    match name:
        case "aten.reshape.default":
            return {"shape": type_.shape}
        case "aten.expand.default":
            return {"size": type_.shape}
        case "aten._to_copy.default":
            return {"dtype": type_.dtype}
    return {}


def _graph_of(traced: Trace, types: Sequence[TensorType]) -> tuple[Dataflow, dict[int, Ref]]:
    graph = Dataflow()
    numbers = {i: graph.value(type_) for i, type_ in enumerate(types)}
    for step in traced.steps:
        refs = graph.add(step.name, _named(step, numbers), step.types)
        numbers.update(zip(step.results, refs, strict=True))
    return graph, numbers


def _named(step: Step, numbers: Mapping[int, Ref]) -> dict[str, Any]:
    def fill(argument: Any) -> Any:
        if isinstance(argument, Traced):
            return Tensor(numbers[argument.number])
        return tuple(fill(a) for a in argument) if isinstance(argument, tuple) else argument

    positional = zip(definitions()[step.name].arguments, step.args, strict=False)
    return {a.name: fill(v) for a, v in positional} | {k: fill(v) for k, v in step.kwargs.items()}


def _terms(graph: Dataflow, ref: Ref) -> list[Ref]:
    """The terms of a sum of tensors of one type; the value itself if it is no sum."""
    node = graph.producer(ref, "aten.add.Tensor")
    if node is None or node.arguments.keys() != {"self", "other"} or len(graph.users[ref]) > 1:
        return [ref]
    operands = [node.tensor("self"), node.tensor("other")]
    if any(graph.types[o] != graph.types[ref] for o in operands):
        return [ref]
    return [term for operand in operands for term in _terms(graph, operand)]


def _cone(graph: Dataflow, outputs: Sequence[Ref], known: set[Ref]) -> tuple[Node, ...]:
    """The nodes on which `outputs` depend, up to the known values."""
    needed = set(outputs)
    cone: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.results) and not known.intersection(node.results):
            cone.append(node)
            needed.update(node.operands())
    return tuple(reversed(cone))
