"""Which operations a `recompute` statement is about: those of the modules that it matches, and those of its kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ...dsl import globs
from ...dsl.error import PlanCode, PlanError
from ...dsl.memory.recompute import Recompute
from ...dsl.spelling import did_you_mean, listed
from ...ir.collectives import COLLECTIVES
from ...ir.dialects.schemas import definitions
from ...ir.layers import layer_of
from ...ir.locations import idiom_of
from ..graph import Node

_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "view.default", "reshape.default", "_unsafe_view.default", "t.default", "transpose.int", "permute.default",
        "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "expand.default", "slice.Tensor",
        "select.int", "split.Tensor", "split_with_sizes.default", "unbind.int", "alias.default", "detach.default",
    )
)  # fmt: skip
"""Operations that compute nothing. What such a one makes of the result of a kind is of the kind too."""
_PREFIXES = ("_", "native_")
_SAME = {"addmm": "linear", "mm": "linear", "bmm": "matmul", "baddbmm": "matmul"}
"""By torch's name of a product of matrices, the kind of what most models write as that."""


def is_view(node: Node) -> bool:
    """Whether an operation computes nothing."""
    return node.name in _VIEWS


def kind_of(node: Node) -> str:
    """What a plan calls the kind of an operation: the idiom that it was written out from, else torch's own name.

    >>> _kind("aten._softmax.default"), _kind("aten.native_layer_norm.default")
    ('softmax', 'layer_norm')
    """
    return idiom_of(node.op.location) or _kind(node.name)


def _kind(name: str) -> str:
    kind = name.split(".")[1] if "." in name else name
    for prefix in _PREFIXES:
        kind = kind.removeprefix(prefix)
    return _SAME.get(kind, kind)


@dataclass(frozen=True)
class Unit:
    """What is computed again together: the inside of a module, or (without a path) operations of the named kinds."""

    path: str = ""


@dataclass(frozen=True)
class Regions:
    """The operations that one statement is about."""

    statement: Recompute
    paths: frozenset[str]
    """The module paths of the forward's operations."""
    _modules: dict[str, str | None] = field(default_factory=dict)

    def module_of(self, path: str) -> str | None:
        """The outermost module around `path` that a glob matches, or the layer where that holds several."""
        if path not in self._modules:
            self._modules[path] = self._found(path)
        return self._modules[path]

    @cached_property
    def _containers(self) -> set[str]:
        """Of layers that have modules of their own; a sequence of single operations is one module."""
        layers = {path: layer_of(path, backward=False) for path in self.paths}
        return {layer.container for path, layer in layers.items() if layer is not None and layer.path != path}

    def _found(self, path: str) -> str | None:
        for outer in modules_around(path):
            if any(globs.matches(pattern, outer) for pattern in self.statement.patterns):
                layer = layer_of(path, backward=False)
                if layer is None or not layer.path.startswith(f"{outer}.") or layer.container not in self._containers:
                    return outer
                return layer.path
        return None

    def unit_of(self, node: Node, path: str) -> Unit | None:
        """The unit of a node of the forward in the module `path`; None for one that is not computed again."""
        if not self._may_run_again(node):
            return None
        if self.statement.is_automatic:
            return None if kind_of(node) in self.statement.exceptions else Unit()
        module = self.module_of(path)
        if module is not None:
            return None if kind_of(node) in self.statement.exceptions else Unit(module)
        return Unit() if kind_of(node) in self.statement.kinds else None

    def units(self, nodes: Iterable[Node], path_of: Callable[[Node], str]) -> dict[Node, Unit]:
        """The units of nodes of the forward, in their order; those of no unit have no entry."""
        units: dict[Node, Unit] = {}
        of_kinds: set[object] = set()
        for node in nodes:
            unit = self.unit_of(node, path_of(node))
            if unit is None and is_view(node) and any(value in of_kinds for value in node.operands):
                unit = Unit()
            if unit is not None:
                units[node] = unit
                if not unit.path:
                    of_kinds.update(node.values)
        return units

    def _may_run_again(self, node: Node) -> bool:
        if node.call is None or not definitions()[node.name].pure:
            return False
        return node.name not in COLLECTIVES or self.statement.recomputes_collectives

    def check(self, kinds: Iterable[str]) -> None:
        """Raise PlanError E0114 for a glob that matches no module of the forward, or a kind that no operation has."""
        known = tuple(dict.fromkeys(outer for path in sorted(self.paths) for outer in modules_around(path)))
        for index, pattern in enumerate(self.statement.patterns):
            if not any(globs.matches(pattern, path) for path in known):
                near = [f'"{text}"' for text in globs.nearest_patterns(pattern, known)]
                raise PlanError(
                    PlanCode.NO_MATCH,
                    f'the pattern "{pattern}" matches no module of the model that computes anything',
                    span=self.statement.places.pattern(index),
                    help=f"did you mean {listed(near)}?" if near else 'a glob matches whole names, such as "*.mlp"',
                )
        names = sorted(set(kinds))
        named = () if self.statement.is_automatic else self.statement.kinds
        for kind in (*named, *self.statement.exceptions):
            if kind not in names:
                raise PlanError(
                    PlanCode.NO_MATCH,
                    f'no operation of the model is of the kind "{kind}"',
                    span=self.statement.kind_span(kind),
                    expected=f"expected {listed(names)}",
                    help=did_you_mean(kind, names),
                )


def modules_around(path: str) -> Iterator[str]:
    """The module and those around it, the outermost first.

    >>> list(modules_around("layers.3.mlp"))
    ['layers', 'layers.3', 'layers.3.mlp']
    """
    parts = path.split(".") if path else []
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
