"""Dataflow as plain Python: nodes with named arguments and numbered values, ready to be matched.

A graph comes from a function of a module (`function_dataflow.py`) or from a trace of autograd (`derive.py`); both go
through `canonical.py`, so that equal computations compare equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....ir.bindings import Operation
from ....ir.locations import Origin, from_location
from ....ir.types import TensorType
from .canonical import canonical, is_identity

Ref = int
"""The number of a value in its graph."""


@dataclass(frozen=True)
class Tensor:
    """A tensor among a node's arguments."""

    ref: Ref


@dataclass(eq=False)
class Node:
    """One operation: its name, its arguments by the schema's names, its results in order (lists flattened)."""

    index: int
    name: str
    arguments: dict[str, Any]
    results: tuple[Ref, ...]
    op: Operation = None

    def constant(self, name: str) -> Any:
        """A constant argument; None if it is omitted or equals the schema's default."""
        argument = self.arguments.get(name)
        return None if isinstance(argument, Tensor) else argument

    def operand(self, name: str) -> Ref | None:
        """The value of a tensor argument; None where it is absent or a constant."""
        argument = self.arguments.get(name)
        return argument.ref if isinstance(argument, Tensor) else None

    def tensor(self, name: str) -> Ref:
        """The value of a required tensor argument."""
        argument = self.arguments[name]
        assert isinstance(argument, Tensor)
        return argument.ref

    def operands(self) -> list[Ref]:
        """All values that the node uses, in schema order."""
        return [tensor.ref for argument in self.arguments.values() for tensor in _tensors(argument)]

    @property
    def origin(self) -> Origin:
        """The place in the user's model."""
        return from_location(self.op.location)


class Dataflow:
    """Nodes in order, and for each value its type, the node that makes it (None for an argument) and its users."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.types: list[TensorType | None] = []
        """None for a value that is no tensor."""
        self.producers: list[Node | None] = []
        self.users: list[list[Node]] = []
        self.by_name: dict[str, list[Node]] = defaultdict(list)

    def value(self, type_: TensorType | None, producer: Node | None = None) -> Ref:
        """A new value."""
        self.types.append(type_)
        self.producers.append(producer)
        self.users.append([])
        return len(self.types) - 1

    def add(
        self, name: str, arguments: Mapping[str, Any], types: Sequence[TensorType | None], op: Operation = None
    ) -> tuple[Ref, ...]:
        """Append an operation; returns its results, or its operand if it is an identity."""
        name, arguments = canonical(name, arguments)
        source = arguments.get("self")
        if isinstance(source, Tensor) and is_identity(name, arguments, [self.types[source.ref]] == list(types)):
            return (source.ref,)
        node = Node(len(self.nodes), name, dict(arguments), (), op)
        node.results = tuple(self.value(t, node) for t in types)
        for ref in dict.fromkeys(node.operands()):
            self.users[ref].append(node)
        self.nodes.append(node)
        self.by_name[name].append(node)
        return node.results

    def producer(self, ref: Ref | None, *names: str) -> Node | None:
        """The node that makes a value, if it has one of `names`."""
        node = None if ref is None else self.producers[ref]
        return node if node is not None and node.name in names else None

    def users_of(self, ref: Ref, *names: str) -> list[Node]:
        """The nodes of one of `names` that use a value."""
        return [node for node in self.users[ref] if node.name in names]

    def outside_user(self, matched: Iterable[Node], kept: Collection[Ref]) -> Node | None:
        """A node outside `matched` that uses an inner value other than those in `kept`; None if there is none."""
        inside = {node.index: node for node in matched}
        refs = (ref for node in inside.values() for ref in node.results if ref not in kept)
        return next((user for ref in refs for user in self.users[ref] if user.index not in inside), None)

    def type_of(self, ref: Ref) -> TensorType:
        """The type of a value that is a tensor."""
        type_ = self.types[ref]
        assert type_ is not None
        return type_


def _tensors(argument: Any) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _tensors(item)
