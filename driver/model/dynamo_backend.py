"""The torch.compile backend: `torch.compile(model, backend="stretto", options={"plan": ...})`.

Dynamo splits a model into graphs, turns the parameters into graph arguments, and calls the backend for each graph.
Here each graph becomes a module again, whose parameters have the model's names, and is compiled like any other model.
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
from ...dsl import globs
from ...dsl.parser import Statement
from ...dsl.plan import Plan
from ...dsl.routing.experts import Experts
from ...dsl.shard import ShardParameters, StoreParameters
from ...dsl.zero import Zero
from ...frontend.capture.traced import MODEL_ATTRIBUTE
from .compiled_module import CompiledModule
from .plan_source import find_plan

_log = logging.getLogger("stretto")
_SHOWN = 5
_STEP = re.compile(r"(?:\._modules\['(?P<quoted>[^']+)'\]|\.(?P<plain>\w+))")
_TENSOR_SOURCE = re.compile(r"^(?P<owner>.*)\._(?P<kind>parameters|buffers)\['(?P<leaf>[^']+)'\]$")
_OWNERS: Mapping[Any, type[nn.Module]] = {
    torch._C._nn.linear: nn.Linear,
    F.linear: nn.Linear,
    F.embedding: nn.Embedding,
}
"""The module class that owns a function's weight; the meaning of a plan's roles depends on it."""


@dataclass(frozen=True)
class _Argument:
    """What one argument of a graph is to the model."""

    kind: str
    """parameters, buffers or inputs."""
    name: str
    """The model's name for it."""


def stretto(
    graph: fx.GraphModule, examples: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """A backend for `torch.compile`; `options={"plan": ...}` takes a path, the text of a plan or a `stretto.Plan`.

    Each graph of the model gets its own program. A pattern of the plan that matches nothing in a graph is ignored
    there, and a batch need not divide by its ranks. Raises StrettoError E0607 without a plan, E0608 for a plan with a
    compute dtype, and the errors of `stretto.compile`.
    """
    extra_options = dict(options or {})
    source = extra_options.pop("plan", None)
    if source is None or extra_options:
        raise StrettoError(
            "E0607",
            f"the backend got the options {', '.join(sorted(options)) if options else 'none'}",
            expected='options={"plan": ...}: the path of a plan, its text, or a stretto.Plan',
            help='torch.compile(model, backend="stretto", options={"plan": "my.plan"})',
        )
    plan = find_plan(source)
    if plan.precision is not None and plan.precision.compute is not None:
        raise StrettoError(
            "E0608",
            "the plan sets a compute dtype, but torch.compile has already fixed the dtypes of the graph",
            span=plan.precision.span,
            help="use stretto.compile(model, plan=...), or torch.autocast around the call",
        )
    return _Compiled(graph, examples, plan)


class _Compiled:
    """One compiled graph, called as dynamo calls it: with parameters, buffers and inputs in one list."""

    def __init__(self, graph: fx.GraphModule, examples: Sequence[Any], plan: Plan) -> None:
        placeholders = graph.graph.find_nodes(op="placeholder")
        self._numbers = _unwrapped_numbers(graph, placeholders)
        self._arguments = _arguments(placeholders, examples)
        self._module = DynamoGraph(graph, self._arguments, placeholders, examples)
        # Dynamo chooses the inputs of a graph: the user cannot pad them, so the program pads.
        self.compiled = CompiledModule(_restricted(plan, self._module), pads=True)

    def __call__(self, *values: Any) -> Any:
        inputs = []
        for position, (argument, value) in enumerate(zip(self._arguments, values, strict=True)):
            if argument.kind == "inputs":
                inputs.append(value.item() if position in self._numbers else value)
            else:
                self._module.set_tensor(argument, value)
        return self.compiled.call(self._module, inputs, {})


class DynamoGraph(nn.Module):
    """A graph as a module that has the model's parameters and buffers, under the model's names."""

    def __init__(
        self,
        graph: fx.GraphModule,
        arguments: Sequence[_Argument],
        placeholders: Sequence[fx.Node],
        examples: Sequence[Any],
    ) -> None:
        super().__init__()
        self.training = True  # the graph was captured in its mode: train() and eval() change nothing
        for argument, node, example in zip(arguments, placeholders, examples, strict=True):
            if argument.kind != "inputs":
                self._make(argument, node, example)
        names = [argument.name for argument in arguments if argument.kind == "inputs"]
        _name_modules(graph)

        def forward(*inputs: Any) -> Any:
            """The graph's results."""
            rest = iter(inputs)
            values = [next(rest) if argument.kind == "inputs" else self._tensor(argument) for argument in arguments]
            with fx_traceback.preserve_node_meta():
                return fx.Interpreter(graph).run(*values)

        forward.__signature__ = Signature(  # type: ignore[attr-defined]
            [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
        )
        self.forward = forward

    def set_tensor(self, argument: _Argument, tensor: Tensor) -> None:
        """Set a parameter or buffer to the tensor that a call passes."""
        owner, leaf = self._owner(argument)
        owned = owner._parameters if argument.kind == "parameters" else owner._buffers
        if owned[leaf] is not tensor:
            owned[leaf] = tensor  # type: ignore[assignment]

    def _tensor(self, argument: _Argument) -> Tensor:
        owner, leaf = self._owner(argument)
        tensor: Tensor = getattr(owner, leaf)
        return tensor

    def _owner(self, argument: _Argument) -> tuple[nn.Module, str]:
        path, _, leaf = argument.name.rpartition(".")
        return self.get_submodule(path), leaf

    def _make(self, argument: _Argument, node: fx.Node, example: Tensor) -> None:
        """Make the modules on the path of a tensor, and register it there; its users tell the last module's class."""
        *path, leaf = argument.name.split(".")
        module: nn.Module = self
        for depth, name in enumerate(path):
            if name not in module._modules:
                kind = _owner_kind(node) if depth == len(path) - 1 else nn.Module
                child = kind.__new__(kind)
                nn.Module.__init__(child)
                module.add_module(name, child)
            module = module.get_submodule(name)
        if argument.kind == "parameters":
            module.register_parameter(leaf, example)  # type: ignore[arg-type]
        else:
            module.register_buffer(leaf, example)


def _unwrapped_numbers(graph: fx.GraphModule, placeholders: Sequence[fx.Node]) -> frozenset[int]:
    """The positions of arguments that are only read as numbers, which the graph then takes as numbers.

    With dynamic=True dynamo passes Python floats, such as the epsilon of a norm, as tensors. A program has them as
    constants; another value gets another program.
    """
    numbers = set()
    for position, node in enumerate(placeholders):
        reads = list(node.users)
        if reads and all(read.op == "call_method" and read.target == "item" for read in reads):
            numbers.add(position)
            for read in reads:
                read.replace_all_uses_with(node)
                graph.graph.erase_node(read)
    return frozenset(numbers)


def _arguments(placeholders: Sequence[fx.Node], examples: Sequence[Any]) -> list[_Argument]:
    """Kind and name of each argument; where a graph has tensors of several models, the model's name is a prefix."""
    matched = [_TENSOR_SOURCE.match(_source(node)) for node in placeholders]
    bases = {_base(match["owner"]) for match in matched if match is not None}
    arguments = []
    taken: set[str] = set()
    for node, match, example in zip(placeholders, matched, examples, strict=True):
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
        arguments.append(_Argument(kind, name))
    return arguments


def _source(node: fx.Node) -> str:
    """The Python expression of an argument, such as "L['self']._modules['up']._parameters['weight']"."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _base(owner: str) -> str:
    """The part of the expression that is the model."""
    return owner.partition("._modules[")[0]


def _path(steps: str) -> list[str]:
    """The names on the path from a model to one of its modules.

    >>> _path("._modules['layers']._modules['0']")
    ['layers', '0']
    """
    return [match["quoted"] or match["plain"] for match in _STEP.finditer(steps)]


def _identifier(expression: str) -> str:
    """The expression as an identifier."""
    return re.sub(r"\W+", "_", re.sub(r"^[LG]\['(\w+)'\]", r"\1", expression)).strip("_")


def _owner_kind(node: fx.Node) -> type[nn.Module]:
    return next((_OWNERS[user.target] for user in node.users if user.target in _OWNERS), nn.Module)


def _name_modules(graph: fx.GraphModule) -> None:
    """Make the nodes' module paths start where those of a captured model start."""
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {key: (_path_in_model(str(path)), cls) for key, (path, cls) in stack.items()}


def _path_in_model(path: str) -> str:
    steps = re.sub(r"^[LG]\['\w+'\]", "", path)
    return ".".join([MODEL_ATTRIBUTE, *_path(steps if steps.startswith(".") else f".{steps}" if steps else "")])


def _restricted(plan: Plan, module: nn.Module) -> Plan:
    """The plan without the patterns that match nothing here: their parameters are in another graph of the model."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    texts = dict.fromkeys(text for name in names for text in (name, name.rpartition(".")[0]))
    statements: list[Statement] = []
    for statement in plan.statements:
        patterns = _patterns(statement)
        if not patterns:
            statements.append(statement)
            continue
        kept = tuple(p for p in patterns if any(globs.matches(p, text) for text in texts))
        for pattern in patterns:
            if pattern not in kept:
                _log.info('pattern "%s" of the plan matches nothing in this graph', pattern)
        if kept:
            statements.append(statement if kept == patterns else _with_patterns(statement, kept))
    if names and plan.parameters and not any(isinstance(statement, ShardParameters) for statement in statements):
        _log.warning("no pattern of the plan matches a parameter of this graph: %s", ", ".join(names[:_SHOWN]))
    return replace(plan, statements=tuple(statements))


def _patterns(statement: Statement) -> tuple[str, ...]:
    """The patterns of a statement that must match a parameter."""
    if isinstance(statement, Zero):
        return statement.only
    return statement.patterns if isinstance(statement, ShardParameters | StoreParameters | Experts) else ()


def _with_patterns(statement: Statement, patterns: tuple[str, ...]) -> Statement:
    if isinstance(statement, Zero):
        return replace(statement, only=patterns)
    assert isinstance(statement, ShardParameters | StoreParameters | Experts), "other statements have no such patterns"
    return replace(statement, patterns=patterns)
