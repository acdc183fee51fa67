"""What a statement is about: the dim of inputs that it cuts, the nanobatches, and the modules that run on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from ...dsl import globs
from ...dsl.error import MemoryCode, PlanCode, PlanError
from ...dsl.memory.nanobatches import Nanobatches
from ...dsl.spelling import listed
from ...ir.bindings import Value
from ...ir.layers import layer_of
from ...ir.locations import Origin
from ...ir.module import Module
from ...ir.types import from_mlir, is_tensor
from ..graph import Graph
from ..layers.unfold_layers import numbered
from ..memory.regions import modules_around
from .cuts import Cut, Parts


@dataclass
class Region:
    """What a statement is about, in one module.

    Raises PlanError E0139 where no input has the dim, or it has fewer elements than there are nanobatches.
    """

    statement: Nanobatches
    module: Module
    _inside: dict[str, bool] = field(default_factory=dict)

    @cached_property
    def dim(self) -> int:
        """The dim of inputs that is cut."""
        return 1 if self.statement.subject == "tokens" else 0

    @cached_property
    def extent(self) -> int:
        """The extent of the dim on one rank: that of most inputs."""
        shapes = [from_mlir(v.type).shape for v in self._inputs if len(from_mlir(v.type).shape) > self.dim]
        if not shapes:
            raise self.refused(f"no input of the model has {self.statement.subject}")
        return Counter(shape[self.dim] for shape in shapes).most_common(1)[0][0]

    @cached_property
    def parts(self) -> Parts:
        """The nanobatches."""
        parts = Parts.of(self.extent, self.statement.sizes or (1,) * self.statement.count)
        if not all(parts.sizes):
            sizes = ", ".join(map(str, parts.sizes))
            raise self.refused(f"a rank has {self._extent_text}: they would have {sizes}")
        return parts

    @property
    def is_reached(self) -> bool:
        """Whether there are as many tokens or samples as the statement asks for."""
        return self.extent >= self.statement.least

    @property
    def _extent_text(self) -> str:
        plural = {"tokens": "tokens of a sequence", "batch": "samples of a microbatch"}[self.statement.subject]
        return f"{self.extent} {plural}" if self.extent != 1 else f"1 {plural.replace('s of', ' of', 1)}"

    @property
    def unreached(self) -> str:
        """Why the statement does nothing where it is not reached."""
        return f"a rank has {self._extent_text}, fewer than the {self.statement.least} from which they are cut"

    def cut_of(self, value: Value) -> Cut | None:
        """How an input of main is cut."""
        if value not in self._inputs:
            return None
        cut = Cut(self.dim)
        return cut if cut.extent(from_mlir(value.type)) == self.extent else None

    @cached_property
    def _inputs(self) -> list[Value]:
        arguments = Graph.of(self.module.functions()["main"]).arguments
        return [value for value, record in arguments if record.get("kind") == "input" and is_tensor(value.type)]

    def has(self, origin: Origin, layer: Origin) -> bool:
        """Whether the operation of this place, in the layer that a call computes, runs on nanobatches."""
        path = numbered(origin, layer).module_path
        if path not in self._inside:
            self._inside[path] = self._names(path)
        return self._inside[path]

    def _names(self, path: str) -> bool:
        if self.statement.patterns:
            around = tuple(modules_around(path))
            return any(globs.matches(pattern, each) for pattern in self.statement.patterns for each in around)
        return not self._layers or layer_of(path, backward=False) is not None

    @cached_property
    def _layers(self) -> bool:
        """Whether the model has repeated layers; without patterns they are what a statement is about."""
        return any(layer_of(path, backward=False) is not None for path in self._paths)

    @cached_property
    def _paths(self) -> list[str]:
        """The module paths of all operations, those of a layer's function once for each call."""
        functions = self.module.functions()
        found: dict[str, None] = {}
        for node in Graph.of(functions["main"]).nodes:
            inner = [] if node.callee is None else Graph.of(functions[node.callee]).nodes
            paths = [numbered(each.origin, node.origin).module_path for each in inner] or [node.origin.module_path]
            found.update(dict.fromkeys(paths))
        return list(found)

    def check(self) -> None:
        """Raise PlanError E0114 for a pattern that matches no module."""
        known = tuple(dict.fromkeys(outer for path in sorted(self._paths) for outer in modules_around(path)))
        for index, pattern in enumerate(self.statement.patterns):
            if not any(globs.matches(pattern, path) for path in known):
                near = [f'"{text}"' for text in globs.nearest_patterns(pattern, known)]
                raise PlanError(
                    PlanCode.NO_MATCH,
                    f'the pattern "{pattern}" matches no module of the model that computes anything',
                    span=self.statement.places.pattern(1 + index),
                    help=f"did you mean {listed(near)}?" if near else 'a glob matches whole names, such as "*.mlp"',
                )

    def refused(self, message: str) -> PlanError:
        """The error for a split that cannot be."""
        count, subject = self.statement.count, self.statement.subject
        return PlanError(
            MemoryCode.NO_NANOBATCHES,
            f"the {subject} cannot be split into {count}: {message}",
            span=self.statement.span,
            help="take fewer nanobatches, or leave split out",
        )
