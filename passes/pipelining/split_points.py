"""Where the modules begin at which a plan begins stages."""

from __future__ import annotations

from collections.abc import Sequence

from ...diagnostics import StrettoError
from ...dsl.globs import match, nearest_patterns
from ...dsl.pipeline import Pipeline
from ...dsl.spelling import listed
from ...ir.module import Module
from ..graph import Graph, Node
from ..layers.unfold_layers import numbered

Place = tuple[int, int]
"""The number of an operation of main, and of one inside the function that it calls."""


def split_places(module: Module, forward: Sequence[Node], said: Pipeline) -> list[Place]:
    """The first operation of every module that a pattern matches, each place once, in order.

    Raises StrettoError E0452 for a pattern that matches no module with an operation of its own or of its parts.
    """
    first: dict[str, Place] = {}
    for at, node in enumerate(forward):
        for inner, path in enumerate(_paths(module, node)):
            for name in _containers(path):
                first.setdefault(name, (at, inner))
    found: set[Place] = set()
    for index, pattern in enumerate(said.split):
        names = match(pattern, first)
        if not names:
            near = listed([f'"{each}"' for each in nearest_patterns(pattern, first)])
            raise StrettoError(
                "E0452",
                f'"{pattern}" matches no module in which the forward uses parameters, so no stage can begin there',
                span=said.places.pattern(index),
                help=f"did you mean {near}?" if near else "name modules as the model does, for example: model.layers.2",
            )
        found.update(first[name] for name in names)
    return sorted(found - {(0, 0)})


def _paths(module: Module, node: Node) -> list[str]:
    """The module paths of an operation, or of those in the function that it calls."""
    name = node.callee
    if name is None:
        return [node.origin.module_path]
    inner = Graph.of(module.functions()[name]).nodes
    return [numbered(each.origin, node.origin).module_path for each in inner] or [node.origin.module_path]


def _containers(path: str) -> list[str]:
    """A path and those of the modules that it lies in.

    >>> _containers("layers.2.mlp")
    ['layers', 'layers.2', 'layers.2.mlp']
    """
    parts = path.split(".") if path else []
    return [".".join(parts[: n + 1]) for n in range(len(parts))]
