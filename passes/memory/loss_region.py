"""The operations on a loss's scores: found by dataflow from the head, each with the strategy that chunks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from ...diagnostics import Span
from ...dsl.error import MemoryCode, PlanError
from ...dsl.memory.split import Split
from ...ir.bindings import Value
from ...ir.dim_groups import dim_groups
from ...ir.placement import AxisPlacement, Partial, Reduce, Shard
from ...ir.types import from_mlir, is_tensor
from ..graph import Graph, Node
from ..sharding.rules.ir_calls import call_strategies
from .kept import behind

_LOSSES = (
    "nn.cross_entropy", "nn.nll_loss", "aten._log_softmax.default", "aten._softmax.default",
    "aten.nll_loss_forward.default",
)  # fmt: skip
_RESHAPES = ("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")
_LINEAR = ("nn.linear", "nn.matmul", "aten.addmm.default", "aten.mm.default")


@dataclass(frozen=True)
class Cut:
    """Of a value: the dim that is cut. It may merge `before` rows of an outer dim with the dim that is cut."""

    dim: int
    before: int = 1


Placed = Cut | Partial | None
"""What a chunk has of a value: a part of its rows, a term of a sum, or all."""


@dataclass(frozen=True)
class Way:
    """How an operation runs on a chunk."""

    inputs: tuple[Placed, ...]
    outputs: tuple[Placed, ...]


@dataclass
class LossRegion:
    """What runs in chunks. Raises PlanError E0138 where there is no such loss, or it cannot be chunked."""

    graph: Graph
    statement: Split
    mesh: Mapping[str, int]

    @cached_property
    def backward(self) -> set[Node]:
        """The nodes of the backward."""
        return behind(self.graph)

    @cached_property
    def head(self) -> Node:
        """The linear layer that makes the largest scores of a loss."""
        heads = [found for node in self.graph.nodes if node.name in _LOSSES and (found := self._head_of(node))]
        if not heads:
            raise self._refused("no linear layer of the model makes the scores of a cross-entropy", None)
        return max(heads, key=lambda node: numel(node.values[0]))

    def _head_of(self, loss: Node) -> Node | None:
        value, size = loss.operands[0], numel(loss.operands[0])
        while (node := self.graph.maker.get(value)) is not None and node not in self.backward:
            if node.name in _LINEAR:
                return node if numel(node.values[0]) == size else None
            same = [operand for operand in node.operands if numel(operand) == size]
            if node.call is None or not same:
                return None
            value = same[0]
        return None

    @cached_property
    def dim(self) -> int:
        """The dim of the scores that is cut: of rows, in chunks of equal size."""
        shape = from_mlir(self.head.values[0].type).shape
        chunks = self.statement.chunks
        for free in (True, False):
            for dim in reversed(range(len(shape) - 1)):
                parts = self.parts_of(dim)
                if (parts == 1) is free and shape[dim] % (parts * chunks) == 0:
                    return dim
        message = f"the scores have rows of {' x '.join(map(str, shape[:-1]))}, which {chunks} chunks do not divide"
        raise self._refused(message, self.head)

    def parts_of(self, dim: int) -> int:
        """How many ranks (and microbatches) share a dim of the inputs."""
        sizes = [
            prod(self.mesh.get(axis, 1) for axis, placed in from_mlir(value.type).placement if placed == Shard(dim))
            for value, record in self.graph.arguments
            if record.get("kind") == "input" and is_tensor(value.type)
        ]
        return max(sizes, default=1)

    @cached_property
    def nodes(self) -> list[Node]:
        """The operations that run in chunks, in order."""
        size, head = numel(self.head.values[0]), self.head
        scores = set(head.values)
        found = {head}
        dependents = self.graph.dependents(head.values)
        for node in self.graph.nodes:
            if node in dependents and any(value in scores for value in node.operands):
                found.add(node)
                scores.update(value for value in node.values if numel(value) == size)
        for node in reversed(self.graph.nodes):
            users = {user for value in node.values for user in self.graph.users.get(value, ())}
            is_large = any(numel(value) == size for value in node.values)
            if node not in found and is_large and users and users <= found:
                found.add(node)
        for direction in (self.backward, set(self.graph.nodes) - self.backward):
            inside = [node for node in self.graph.nodes if node in found & direction]
            made = [value for node in inside for value in node.values]
            read = [value for node in inside for value in node.operands]
            found |= self.graph.dependents(made) & self.graph.cone(read) & direction
        return [node for node in self.graph.nodes if node in found]

    @cached_property
    def ways(self) -> dict[Node, Way]:
        """How each operation runs on a chunk."""
        placed: dict[Value, Placed] = {}
        ways: dict[Node, Way] = {}
        for node in self.nodes:
            ways[node] = self._way(node, placed)
            placed.update(zip(node.values, ways[node].outputs, strict=True))
        return ways

    def _way(self, node: Node, placed: Mapping[Value, Placed]) -> Way:
        cut = next((each for v in node.operands if isinstance(each := placed.get(v), Cut)), None)
        way = (
            self._reshaped(node, cut) if node.name in _RESHAPES and cut is not None else self._listed(node, placed, cut)
        )
        if way is None:
            raise self._refused(f'"{node.name}" cannot run on a part of the rows', node)
        return way

    def _reshaped(self, node: Node, cut: Cut) -> Way | None:
        """A reshape that leaves the dim that is cut, merges it with dims before it, or parts it from these again."""
        before, after = (from_mlir(v.type).shape for v in (node.operands[0], node.values[0]))
        for old, new in dim_groups(before, after):
            if cut.dim not in old:
                continue
            inner = prod(before[old[0] : cut.dim]) * cut.before
            if len(new) == 1 and cut.dim == old[-1]:
                return Way((cut,), (Cut(new[0], inner),))
            if len(old) == 1 and prod(after[new[0] : new[-1]]) == cut.before:
                return Way((cut,), (Cut(new[-1]),))
        return None

    def _listed(self, node: Node, placed: Mapping[Value, Placed], cut: Cut | None) -> Way | None:
        """The first of an operation's sharding strategies that fits what is placed."""
        assert node.call is not None  # calls of layers take no scores
        types = [from_mlir(v.type) if is_tensor(v.type) else None for v in node.values]
        first = self._first_cut(node) if cut is None else cut
        for strategy in call_strategies(node.call, types).strategies:
            inputs = tuple(_placed(p, first) for p in strategy.inputs)
            outputs = tuple(_placed(p, first) for p in strategy.outputs)
            is_bound = cut is not None or outputs[0] == first
            if strategy.lowering is None and is_bound and self._fits(node, inputs, outputs, placed):
                return Way(inputs, outputs)
        return None

    def _first_cut(self, node: Node) -> Cut | None:
        """How what is as large as the scores is cut, where no operand says it."""
        scores, shape = from_mlir(self.head.values[0].type).shape, from_mlir(node.values[0].type).shape
        if shape == scores:
            return Cut(self.dim)
        is_flat = len(shape) == 2 and shape[-1] == scores[-1] and self.dim == len(scores) - 2
        return Cut(0, prod(scores[: self.dim])) if is_flat else None

    def _fits(
        self,
        node: Node,
        inputs: Sequence[Placed],
        outputs: Sequence[Placed],
        placed: Mapping[Value, Placed],
    ) -> bool:
        pieces = self.statement.chunks * self.parts_of(self.dim)
        for value, placement in zip(node.operands, inputs, strict=True):
            if value in placed and placed[value] != placement:
                return False
            if value not in placed and isinstance(placement, Partial):
                return False
            if isinstance(placement, Cut) and from_mlir(value.type).shape[placement.dim] % (pieces * placement.before):
                return False
        return not any(isinstance(p, Partial) and p.reduce is not Reduce.SUM for p in outputs)

    def _refused(self, message: str, node: Node | None) -> PlanError:
        origin = None if node is None else node.origin
        notes = ((f"it is {origin}", Span(origin.file, origin.line) if origin.file else None),) if origin else ()
        return PlanError(
            MemoryCode.NO_CHUNKS,
            f"the loss cannot be computed in {self.statement.chunks} chunks: {message}",
            span=self.statement.span,
            notes=notes,
            help="take another number of chunks, or leave split out",
        )


def _placed(placement: AxisPlacement | None, cut: Cut | None) -> Placed:
    if isinstance(placement, Shard):
        return Cut(placement.dim, 1 if cut is None else cut.before)
    return placement if isinstance(placement, Partial) else None


def numel(value: Value) -> int:
    """The elements of a value; 0 of what is no tensor."""
    return prod(from_mlir(value.type).shape) if is_tensor(value.type) else 0
