"""The operations at which a plan's `split` modules begin."""

from __future__ import annotations

from collections.abc import Sequence

from ...diagnostics import StrettoError
from ...dsl.globs import match, nearest_patterns
from ...dsl.pipeline import Pipeline
from ...dsl.spelling import listed
from ...ir.module import Module
from ..graph import Graph, Node
from ..layers.unfold_layers import numbered

SplitPoint = tuple[int, int]
"""The index of an operation of main's forward, and of one inside the function that it calls."""


def split_points(module: Module, forward: Sequence[Node], pipeline: Pipeline) -> list[SplitPoint]:
    """The first operation of every module that a pattern matches, without duplicates, in order.

    Raises StrettoError E0452 for a pattern that matches no module with an operation of its own or of its parts.
    """
    first: dict[str, SplitPoint] = {}
    for index, node in enumerate(forward):
        for inner, path in enumerate(_paths(module, node)):
            for name in _containers(path):
                first.setdefault(name, (index, inner))
    points: set[SplitPoint] = set()
    for pattern_index, pattern in enumerate(pipeline.split):
        names = match(pattern, first)
        if not names:
            nearest = listed([f'"{near_pattern}"' for near_pattern in nearest_patterns(pattern, first)])
            raise StrettoError(
                "E0452",
                f'"{pattern}" matches no module in which the forward uses parameters, so no stage can begin there',
                span=pipeline.places.pattern(pattern_index),
                help=f"did you mean {nearest}?"
                if nearest
                else "name modules as the model does, for example: model.layers.2",
            )
        points.update(first[name] for name in names)
    return sorted(points - {(0, 0)})


def _paths(module: Module, node: Node) -> list[str]:
    """The module path of an operation, or those of the operations in the function that it calls."""
    name = node.callee
    if name is None:
        return [node.origin.module_path]
    inner = Graph.of(module.functions()[name]).nodes
    return [numbered(inner_node.origin, node.origin).module_path for inner_node in inner] or [node.origin.module_path]


def _containers(path: str) -> list[str]:
    """A module path and those of all modules around it.

    >>> _containers("layers.2.mlp")
    ['layers', 'layers.2', 'layers.2.mlp']
    """
    parts = path.split(".") if path else []
    return [".".join(parts[: n + 1]) for n in range(len(parts))]
