"""Which operations of a function run on nanobatches, for one way in which its arguments are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ...ir.bindings import Operation, Value
from ...ir.collectives import COLLECTIVES
from ...ir.locations import Origin
from ...ir.module import entry, name_of, terminator
from ...ir.placement import Partial
from ...ir.types import from_mlir
from ..graph import Graph, Node
from ..overlap.custom_ops import IsBarrier
from .cuts import Cut
from .region import Region
from .ways import Way, kept_cut, way_of


@dataclass(frozen=True)
class Signature:
    """What a function is copied for."""

    name: str
    cuts: tuple[Cut | None, ...]
    """How each argument is cut."""
    fits: tuple[bool, ...]
    """Whether each argument has the extent that is cut."""
    inside: tuple[bool, ...]
    """Whether the statement is about the module of each operation."""

    @property
    def in_parts(self) -> tuple[bool, ...]:
        """Whether each argument comes as one value for each nanobatch; those of main come whole."""
        is_affected = self.name != "main" and any(self.inside)
        return tuple(is_affected and fits for fits in self.fits)


@dataclass(frozen=True)
class Copied:
    """A function of the new module, and what its calls give."""

    name: str
    cuts: tuple[Cut | None, ...]
    """How each result is cut."""
    in_parts: tuple[bool, ...]
    """Whether each result is one value for each nanobatch."""


Copy = Callable[[Signature], Copied]


@dataclass
class Placing:
    """How each operation of a function runs."""

    graph: Graph
    region: Region
    signature: Signature
    copy: Copy
    is_barrier: IsBarrier
    cuts: dict[Value, Cut] = field(default_factory=dict)
    """By value: how it would be cut, wherever it is made."""
    ways: dict[Node, Way] = field(default_factory=dict)
    """Of the operations that run on nanobatches."""
    needs_whole: list[Node] = field(default_factory=list)
    """Operations on values that are cut, which need them whole."""
    calls: dict[Node, tuple[Signature, Copied]] = field(default_factory=dict)
    parted: set[Value] = field(default_factory=set)
    """The values that there are in parts."""

    def run(self) -> None:
        """Fill the tables."""
        arguments = list(entry(self.graph.function).arguments)
        for argument, cut, in_parts in zip(arguments, self.signature.cuts, self.signature.in_parts, strict=True):
            if cut is not None:
                self.cuts[argument] = cut
            if in_parts:
                self.parted.add(argument)
        tangents = self._tangents()
        for node, inside in zip(self.graph.nodes, self.signature.inside, strict=True):
            for value in node.operands:
                if value in tangents and tangents[value] in self.cuts:
                    self.cuts[value] = self.cuts[tangents[value]]
            if node.callee is not None:
                self._call(node)
            else:
                self._operation(node, inside=inside and not self.is_barrier(node.op))
        self._join_collectives()

    def _tangents(self) -> dict[Value, Value]:
        """By tangent of main: the output that it is of."""
        outputs = {record.get("index"): v for v, record in self.graph.results if record.get("kind") == "output"}
        return {
            value: outputs[record.get("index")]
            for value, record in self.graph.arguments
            if record.get("kind") == "tangent"
            and record.get("index") in outputs
            and outputs[record.get("index")].type == value.type
        }

    def _operation(self, node: Node, *, inside: bool) -> None:
        parts, mesh = self.region.parts, self.region.module.mesh
        way = way_of(node, self.cuts, parts.count, mesh)
        if way is None:
            kept = kept_cut(node, self.cuts)
            self.cuts.update({} if kept is None else dict.fromkeys(node.values, kept))
            if kept is None and any(value in self.cuts for value in node.operands):
                self.needs_whole.append(node)
            return
        self.cuts.update((v, p) for v, p in zip(node.values, way.outputs, strict=True) if isinstance(p, Cut))
        self.cuts.update(self._of_sums(node, way))
        if inside and way.extent == parts.extent:
            self.ways[node] = way
            self.parted.update(v for v, p in zip(node.values, way.outputs, strict=True) if isinstance(p, Cut))

    def _of_sums(self, node: Node, way: Way) -> Iterator[tuple[Value, Cut]]:
        """How sums over the parts are cut again, such as the gradients of keys: as the operands of their shapes."""
        whole = {
            from_mlir(v.type).shape: self.cuts[v]
            for v, placed in reversed([*zip(node.operands, way.inputs, strict=True)])
            if placed is None and v in self.cuts
        }
        for value, placed in zip(node.values, way.outputs, strict=True):
            if isinstance(placed, Partial) and from_mlir(value.type).shape in whole:
                yield value, whole[from_mlir(value.type).shape]

    def _call(self, node: Node) -> None:
        function = self.region.module.functions()[str(node.callee)]
        signature = signature_of(function, self.region, [self.cuts.get(v) for v in node.operands], node.origin)
        copied = self.copy(signature)
        self.calls[node] = signature, copied
        for value, cut, in_parts in zip(node.values, copied.cuts, copied.in_parts, strict=True):
            if cut is not None:
                self.cuts[value] = cut
            if in_parts:
                self.parted.add(value)

    def _join_collectives(self) -> None:
        """Let a collective whose result is needed whole run once."""
        returned = set(terminator(self.graph.function).operands)
        for node in reversed(self.graph.nodes):
            if node in self.ways and node.name in COLLECTIVES and not returned & {*node.values}:
                users = [(user, value) for value in node.values for user in self.graph.users.get(value, ())]
                if users and not any(self.takes_parts(user, value) for user, value in users):
                    del self.ways[node]
                    self.parted.difference_update(node.values)

    def takes_parts(self, node: Node, value: Value) -> bool:
        """Whether a node takes the parts of an operand."""
        return any(in_parts for v, in_parts in self._taken(node) if v == value)

    def takes_whole(self, node: Node, value: Value) -> bool:
        """Whether a node takes the whole of an operand; attention may take both."""
        return not all(in_parts for v, in_parts in self._taken(node) if v == value)

    def _taken(self, node: Node) -> list[tuple[Value, bool]]:
        """The operands, each with whether it is taken in parts."""
        if node in self.ways:
            in_parts: Sequence[bool] = [isinstance(placed, Cut) for placed in self.ways[node].inputs]
        elif node in self.calls:
            in_parts = self.calls[node][0].in_parts
        else:
            in_parts = [False] * len(node.operands)
        return list(zip(node.operands, in_parts, strict=True))


def signature_of(function: Operation, region: Region, cuts: Sequence[Cut | None], layer: Origin) -> Signature:
    """The signature of a function whose arguments are cut like this, called for one layer."""
    nodes = Graph.of(function).nodes
    arguments = zip(entry(function).arguments, cuts, strict=True)
    fits = tuple(cut is not None and cut.extent(from_mlir(v.type)) == region.extent for v, cut in arguments)
    inside = tuple(region.has(node.origin, layer) for node in nodes)
    return Signature(name_of(function), tuple(cuts), fits, inside)
