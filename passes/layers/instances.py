"""Group operations of main into instances of repeated layers, and find equal instances.

A layer is a number in a numbered container ("layers.3"); its operations have a module path that begins with it. Forward
and backward are separate instances.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir.bindings import Value, mlir
from ...ir.locations import Origin
from ...ir.operations import Call
from ..graph import Node

_NUMBERED = re.compile(r"^(?P<container>(?:[^.\d][^.]*\.)*[^.\d][^.]*)\.(?P<index>\d+)(?=\.|$)")


@dataclass(frozen=True)
class Layer:
    """One layer of one container, in one direction."""

    container: str
    index: int
    backward: bool

    @property
    def path(self) -> str:
        """The module path of the layer."""
        return f"{self.container}.{self.index}"

    @property
    def direction(self) -> str:
        """ "forward" or "backward"."""
        return "backward" if self.backward else "forward"


@dataclass(eq=False)
class Instance:
    """The operations of one layer in one direction."""

    layer: Layer
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    """Values from outside, in the order of their first use."""
    values: list[Value] = field(default_factory=list)
    """Values made inside, in order."""

    def signature(self) -> tuple[Any, ...]:
        """A key that is equal for instances that one function can replace; fills `inputs` and `values`.

        For each operation its name, constants, operands by number, and the types of its results; then the types of the
        inputs.
        """
        self.inputs, self.values = [], []
        numbers: dict[Value, int] = {}
        lines = []
        for node in self.nodes:
            operands = []
            for value in node.operands:
                if value not in numbers:
                    numbers[value] = -1 - len(self.inputs)
                    self.inputs.append(value)
                operands.append(numbers[value])
            results = node.values
            for value in results:
                numbers[value] = len(self.values)
                self.values.append(value)
            assert node.call is not None  # layers are folded once
            lines.append((node.name, _constants(node.call), tuple(operands), tuple(str(v.type) for v in results)))
        return (*lines, tuple(str(v.type) for v in self.inputs))


def equal_instances(nodes: Sequence[Node]) -> tuple[list[list[Instance]], list[Instance]]:
    """Groups of instances with equal signatures, in order of first appearance, and the instances without an equal."""
    instances: dict[Layer, Instance] = {}
    for node in nodes:
        layer = _layer(node.origin)
        if layer is not None:
            instances.setdefault(layer, Instance(layer)).nodes.append(node)
    groups: dict[tuple[Any, ...], list[Instance]] = {}
    for layer, instance in instances.items():
        groups.setdefault((layer.container, layer.backward, instance.signature()), []).append(instance)
    alone = [group[0] for group in groups.values() if len(group) == 1]
    return [group for group in groups.values() if len(group) > 1], alone


def unnumbered(origin: Origin) -> Origin:
    """The place of an operation in all instances: "layers.*.mlp"."""
    path = _NUMBERED.sub(lambda m: f"{m['container']}.*", origin.module_path)
    return Origin(path, origin.file, origin.line, origin.backward)


def _layer(origin: Origin) -> Layer | None:
    match = _NUMBERED.match(origin.module_path)
    return Layer(match["container"], int(match["index"]), origin.backward) if match else None


def _constants(call: Call) -> str:
    """The constant arguments of a call, as text."""

    def constant(argument: Any) -> Any:
        if isinstance(argument, mlir.Value):
            return "%"
        if isinstance(argument, (list, tuple)):
            return [constant(a) for a in argument]
        return argument

    return repr(([constant(a) for a in call.args], {k: constant(v) for k, v in sorted(call.kwargs.items())}))
