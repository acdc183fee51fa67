"""`torch.compile(model, backend="stretto", options={"plan": ...})`: the second door, by torch's own name for it.

Dynamo cuts a model's Python into graphs, takes each graph's parameters out, and calls a backend for each. Here the
graph becomes a module again, whose parameters bear the names that the model gives them, and is compiled as any other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback as fx_traceback
from torch.nn import functional as F

from ...diagnostics import StrettoError
from ...dsl.parser import Statement
from ...dsl.plan import Plan
from ...dsl.resolve import matches
from ...dsl.shard import ShardParameters
from ...frontend.capture.traced import MODEL_ATTRIBUTE
from .compiled_module import CompiledModule
from .plan_source import find_plan

_log = logging.getLogger("stretto")
_SHOWN = 5
_STEP = re.compile(r"(?:\._modules\['(?P<quoted>[^']+)'\]|\.(?P<plain>\w+))")
_HELD = re.compile(r"^(?P<owner>.*)\._(?P<kind>parameters|buffers)\['(?P<leaf>[^']+)'\]$")
_OWNERS: Mapping[Any, type[nn.Module]] = {
    torch._C._nn.linear: nn.Linear,
    F.linear: nn.Linear,
    F.embedding: nn.Embedding,
}
"""The module that a function's weight belongs to: what a plan's roles mean depends on it."""


@dataclass(frozen=True)
class _Place:
    """Where one argument of a graph belongs."""

    kind: str
    """parameters, buffers or inputs."""
    name: str
    """The model's name of it."""


def stretto(
    graph: fx.GraphModule, examples: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """A backend for `torch.compile`; `options={"plan": ...}` takes a path, a text or a `stretto.Plan`.

    Each graph that torch cuts out of the model is a program of its own. A pattern of the plan that matches nothing in a
    graph is left out there, and a batch need not divide by its ranks. Raises StrettoError E0607 without a plan, E0608
    for one that says what to compute in, and what `stretto.compile` raises.
    """
    given = dict(options or {})
    source = given.pop("plan", None)
    if source is None or given:
        raise StrettoError(
            "E0607",
            f"the backend was given the options {', '.join(sorted(options)) if options else 'none'}",
            expected='options={"plan": ...}: the path of a plan, its text, or a stretto.Plan',
            help='torch.compile(model, backend="stretto", options={"plan": "my.plan"})',
        )
    plan = find_plan(source)
    if plan.precision is not None and plan.precision.compute is not None:
        raise StrettoError(
            "E0608",
            "the plan says what to compute in, but torch has fixed the dtypes of the graph already",
            span=plan.precision.span,
            help="use stretto.compile(model, plan=...), or torch.autocast around the call",
        )
    return _Compiled(graph, examples, plan)


class _Compiled:
    """One graph of dynamo's, called as dynamo calls it: with parameters, buffers and inputs in one list."""

    def __init__(self, graph: fx.GraphModule, examples: Sequence[Any], plan: Plan) -> None:
        holders = graph.graph.find_nodes(op="placeholder")
        self._places = _places(holders, examples)
        self._shell = DynamoGraph(graph, self._places, holders, examples)
        # What a graph takes is torch's choice, not the user's, who could not pass another number of rows.
        self.compiled = CompiledModule(_restricted(plan, self._shell), pads=True)

    def __call__(self, *given: Any) -> Any:
        inputs = []
        for place, value in zip(self._places, given, strict=True):
            if place.kind == "inputs":
                inputs.append(value)
            else:
                self._shell.hold(place, value)
        return self.compiled.call(self._shell, inputs, {})


class DynamoGraph(nn.Module):
    """A graph as a module that holds what the model holds, under the model's names."""

    def __init__(
        self, graph: fx.GraphModule, places: Sequence[_Place], holders: Sequence[fx.Node], examples: Sequence[Any]
    ) -> None:
        super().__init__()
        self.training = True  # what train() and eval() decide, the graph holds already
        for place, node, example in zip(places, holders, examples, strict=True):
            if place.kind != "inputs":
                self._make(place, node, example)
        names = [place.name for place in places if place.kind == "inputs"]
        _name_modules(graph)

        def forward(*inputs: Any) -> Any:
            """The graph's results."""
            rest = iter(inputs)
            values = [next(rest) if place.kind == "inputs" else self._held(place) for place in places]
            with fx_traceback.preserve_node_meta():
                return fx.Interpreter(graph).run(*values)

        forward.__signature__ = Signature(  # type: ignore[attr-defined]
            [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
        )
        self.forward = forward

    def hold(self, place: _Place, tensor: Tensor) -> None:
        """Hold the tensor that a call passes for a parameter or buffer."""
        owner, leaf = self._owner(place)
        held = owner._parameters if place.kind == "parameters" else owner._buffers
        if held[leaf] is not tensor:
            held[leaf] = tensor  # type: ignore[assignment]

    def _held(self, place: _Place) -> Tensor:
        owner, leaf = self._owner(place)
        tensor: Tensor = getattr(owner, leaf)
        return tensor

    def _owner(self, place: _Place) -> tuple[nn.Module, str]:
        path, _, leaf = place.name.rpartition(".")
        return self.get_submodule(path), leaf

    def _make(self, place: _Place, node: fx.Node, example: Tensor) -> None:
        """Make the modules on the way to a tensor, the last one of the kind that its users tell, and hold it there."""
        *path, leaf = place.name.split(".")
        module: nn.Module = self
        for at, name in enumerate(path):
            if name not in module._modules:
                kind = _owner_kind(node) if at == len(path) - 1 else nn.Module
                made = kind.__new__(kind)
                nn.Module.__init__(made)
                module.add_module(name, made)
            module = module.get_submodule(name)
        if place.kind == "parameters":
            module.register_parameter(leaf, example)  # type: ignore[arg-type]
        else:
            module.register_buffer(leaf, example)


def _places(holders: Sequence[fx.Node], examples: Sequence[Any]) -> list[_Place]:
    """The kind and the name of each argument; where a graph has parts of several models, their names come first."""
    found = [_HELD.match(_source(node)) for node in holders]
    bases = {_base(match["owner"]) for match in found if match is not None}
    places = []
    taken: set[str] = set()
    for node, match, example in zip(holders, found, examples, strict=True):
        if match is None:
            kind = "parameters" if isinstance(example, nn.Parameter) else "inputs"
            name = re.sub(r"^[lg]_|_$", "", node.name)
        else:
            kind, base = match["kind"], _base(match["owner"])
            path = _path(match["owner"].removeprefix(base))
            name = ".".join([*([_identifier(base)] if len(bases) > 1 else []), *path, match["leaf"]])
        while name in taken:
            name += "_"
        taken.add(name)
        places.append(_Place(kind, name))
    return places


def _source(node: fx.Node) -> str:
    """The Python expression that an argument comes from, such as "L['self']._modules['up']._parameters['weight']"."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _base(owner: str) -> str:
    """The part of the expression that is the model."""
    return owner.partition("._modules[")[0]


def _path(steps: str) -> list[str]:
    """The names on the way from a model to one of its modules.

    >>> _path("._modules['layers']._modules['0']")
    ['layers', '0']
    """
    return [match["quoted"] or match["plain"] for match in _STEP.finditer(steps)]


def _identifier(expression: str) -> str:
    """A name for an expression."""
    return re.sub(r"\W+", "_", re.sub(r"^[LG]\['(\w+)'\]", r"\1", expression)).strip("_")


def _owner_kind(node: fx.Node) -> type[nn.Module]:
    return next((_OWNERS[user.target] for user in node.users if user.target in _OWNERS), nn.Module)


def _name_modules(graph: fx.GraphModule) -> None:
    """Let the nodes' module paths begin where those of a captured model do."""
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {key: (_below(str(path)), cls) for key, (path, cls) in stack.items()}


def _below(path: str) -> str:
    steps = re.sub(r"^[LG]\['\w+'\]", "", path)
    return ".".join([MODEL_ATTRIBUTE, *_path(steps if steps.startswith(".") else f".{steps}" if steps else "")])


def _restricted(plan: Plan, shell: nn.Module) -> Plan:
    """The plan without the patterns that match nothing here: what they are about is in another graph of the model."""
    names = [name for name, _ in shell.named_parameters(remove_duplicate=False)]
    statements: list[Statement] = []
    for statement in plan.statements:
        if not isinstance(statement, ShardParameters):
            statements.append(statement)
            continue
        kept = tuple(p for p in statement.patterns if any(matches(replace(statement, patterns=(p,)), n) for n in names))
        for pattern in statement.patterns:
            if pattern not in kept:
                _log.info('pattern "%s" of the plan matches nothing in this graph', pattern)
        if kept:
            statements.append(statement if kept == statement.patterns else replace(statement, patterns=kept))
    if names and plan.parameters and not any(isinstance(each, ShardParameters) for each in statements):
        _log.warning("no pattern of the plan matches a parameter of this graph: %s", ", ".join(names[:_SHOWN]))
    return replace(plan, statements=tuple(statements))
