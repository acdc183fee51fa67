"""Compute a norm that follows an all-reduce on a part of the rows: reduce-scatter before it, gather after it.

Before                                          After (over tp=2, rows along dim 1)
  %s = comm.all_reduce %z over ["tp"]             %s = comm.reduce_scatter %z over ["tp"], dim 1
  %h = aten.add %r, %s      t<4x32x64>            %h = aten.add (shard of %r), %s      t<4x16x64>
  %n = nn.rms_norm %h, %w                         %n = nn.rms_norm %h, %w
                                                  %g = comm.all_gather %n over ["tp"], dim 1

A norm treats each row alone, and so do the operations between it and the all-reduce: residuals, casts, scales. Their
results stay sharded until an operation such as a product needs them whole. So the residual stays sharded from a layer's
first all-reduce to its second, and the backward keeps sharded rows of the forward. Gradients of the norm's weights are
summed over the ranks.

Where a norm's backward reads a partial sum that is reduced after it, the sum is reduce-scattered before it instead. A
function is left as it is if it would send more bytes than before, as sharded values would be gathered too often.

Needs: level `comm`, behind `partition-tensors`, before `lower-idioms`.   Keeps: values; gradients of weights are added
in another order.   Cost: no more bytes on the wires of a ring; 1/ranks of the norms' work and memory.
Source: TokenWeave (arXiv:2505.11329), in one kernel; Megatron-LM's sequence parallelism (arXiv:2205.05198).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ...costs.compute import bytes_of
from ...dsl.communication.overlap import NORMS
from ...dsl.plan import Plan
from ...ir.bindings import Operation, Value, mlir
from ...ir.collectives import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from ...ir.dialects.context import context
from ...ir.module import Level, Module, terminator
from ...ir.operations import regroup
from ...ir.placement import Mesh, Reduce, Replicate, axes_size
from ...ir.types import TensorType, from_mlir, is_tensor, to_mlir
from ...ops.overloads import is_pointwise
from ..base import Pass, Remark, RemarkKind, Report
from ..collective_text import collective_text
from ..counted_remarks import CountedRemarks
from ..graph import Graph, Node, build_like
from ..plan_effects import OVERLAP_KEY
from ..rewriting import Emitter
from ..row_operations import has_rows, takes_rows_alone
from .split_all_reduce import scattered_type, splits

_COPY = "aten._to_copy.default"
_ALIKE = (ALL_REDUCE, ALL_GATHER)
"""Of what communicates over other axes: what gives equal values where it takes equal ones."""
_NORMS = {fusion: fusion.replace("all_reduce+", "nn.") for fusion in NORMS}
"""By fusion, its norm; the backward has the same name behind it."""


@dataclass(frozen=True)
class ScatterNorms(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "scatter-norms"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    joins_layers: ClassVar[bool] = True
    plan: Plan
    """The plan; what its `overlap` says to fuse is used."""

    def run(self, module: Module) -> Report:
        remarks, count = CountedRemarks(self.name), 0
        fusions = [fusion for fusion in NORMS if fusion in self.plan.overlap.fuse]
        warnings = []
        for fusion in fusions:
            misses: list[str] = []
            found = 0
            for function in module.functions().values():
                found += _Function(function, module.mesh, _NORMS[fusion], remarks, misses).fuse()
            if not found:
                nearest = misses[0] if misses else "no tensor with rows is all-reduced"
                message = f'"{fusion}" fuses nothing: {nearest}'
                span = self.plan.overlap.spans.get("fuse")
                warnings.append(Remark(self.name, RemarkKind.WARNING, message, span=span))
            count += found
        return Report(count, (*remarks.remarks(), *warnings), {OVERLAP_KEY: ""} if count else {})


@dataclass(frozen=True)
class _Cut:
    """How sums are cut: over axes, along a dim of their rows."""

    axes: tuple[str, ...]
    rows: tuple[int, ...]
    dim: int


@dataclass
class _Chosen:
    """What of a function is computed on a part of the rows."""

    sums: list[Node] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    """In order: the sums, norms, and what takes rows alone."""
    cut: dict[Value, None] = field(default_factory=dict)
    whole: dict[Value, None] = field(default_factory=dict)
    """The cut values that something else needs."""
    scattered: dict[Value, None] = field(default_factory=dict)
    """Partial sums that a cut operation takes, which are scattered before it."""
    ended: list[Node] = field(default_factory=list)
    """Sums of what is cut already: nothing is left to add."""
    has_norm: bool = False


class _Function:
    """Rewrites one function."""

    def __init__(self, function: Operation, mesh: Mesh, norm: str, remarks: CountedRemarks, misses: list[str]) -> None:
        self._graph, self._mesh, self._norms = Graph.of(function), mesh, (norm, f"{norm}_backward")
        self._remarks, self._misses = remarks, misses
        self._returned = set(terminator(function).operands)

    def fuse(self) -> int:
        """The number of sums that are scattered before a norm."""
        cuts = {node.op: cut for node in self._graph.nodes if (cut := self._cut(node)) is not None}
        count = 0
        for cut in dict.fromkeys(cuts.values()):
            chosen = self._choose(cut)
            for node in self._graph.nodes:
                if cuts.get(node.op) == cut and node not in chosen.nodes and not self._is_gradient(node.values[0]):
                    self._miss(
                        node, f"{self._norms[0].removeprefix('nn.')} does not read it, but {self._readers(node)}"
                    )
            if not chosen.has_norm:
                continue
            why = self._cost(cut, chosen)
            if why:
                self._miss(chosen.sums[0], why)
                continue
            norm = self._norms[0].removeprefix("nn.")
            rows = f"{cut.rows[cut.dim] // self._size(cut)} of {cut.rows[cut.dim]} rows along dim {cut.dim} a rank"
            for node in chosen.sums:
                message = f"{collective_text(node.op)} is scattered before {norm}: {rows}"
                self._remarks.applied(message, node.origin)
            _Rewriting(cut, self._mesh, chosen).run()
            self._graph = Graph.of(self._graph.function)
            count += len(chosen.sums)
        return count

    def _cost(self, cut: _Cut, chosen: _Chosen) -> str:
        """Why the sums are better left whole; empty where no more is sent than before."""
        if any(self._is_partial(value, cut) for value in chosen.whole):
            return "a partial sum of what is cut is read elsewhere, too"
        before = 2 * sum(map(bytes_of, _results([*chosen.sums, *chosen.ended])))  # a reduce-scatter and a gather
        scattered = sum(map(bytes_of, [*_results(chosen.sums), *chosen.scattered]))
        gathered = sum(map(bytes_of, chosen.whole))
        if scattered + gathered > before:
            return f"{gathered} bytes would be gathered in place of {before - scattered}"
        return ""

    def _size(self, cut: _Cut) -> int:
        return axes_size(self._mesh, cut.axes)

    def _miss(self, node: Node, why: str) -> None:
        message = f"{collective_text(node.op)} stays whole: {why}"
        self._misses.append(message + (f" ({node.origin})" if node.origin.file else ""))
        self._remarks.missed(message, node.origin)

    def _cut(self, node: Node) -> _Cut | None:
        """How to cut a sum with rows; None where it cannot be, with a remark, and for other operations."""
        if node.name != ALL_REDUCE or node.call is None:
            return None
        _, axes, reduction = node.call.args
        type_ = from_mlir(node.values[0].type)
        if reduction != Reduce.SUM or len(type_.shape) < 2 or axes_size(self._mesh, tuple(axes)) == 1:
            return None
        rows = type_.shape[:-1]
        dims = sorted(range(len(rows)), key=lambda dim: dim == 0)  # tokens first, then the batch
        dim = next((dim for dim in dims if splits(type_, dim, axes, self._mesh)), None)
        if dim is None:
            self._miss(node, f"{axes_size(self._mesh, tuple(axes))} ranks divide none of its rows {list(rows)}")
            return None
        return _Cut(tuple(axes), rows, dim)

    def _is_gradient(self, value: Value) -> bool:
        """Whether a value is a sum that only leaves the function, such as a parameter's gradient."""
        return value in self._returned and not self._graph.users.get(value)

    def _readers(self, node: Node) -> str:
        names = sorted({user.name.partition(".")[2] or "a call" for user in self._graph.users.get(node.values[0], ())})
        return ", ".join(names) or "nothing here"

    def _reaches(self, node: Node, rows: tuple[int, ...], beside: dict[Value, None] | None = None) -> bool:
        """Whether a norm reads a sum, or a residual with it; `beside`: or anything that is cut."""
        waiting, seen = list(node.values), set[Value]()
        while waiting:
            value = waiting.pop()
            seen.add(value)
            for user in self._graph.users.get(value, ()):
                if user.name in self._norms and self._is_row_norm(user, rows):
                    return True
                if _takes_rows_alone(user, rows):
                    if beside is not None and any(v in beside for v in user.operands):
                        return True
                    waiting += [v for v in user.values if v not in seen]
        return False

    def _is_row_norm(self, node: Node, rows: tuple[int, ...]) -> bool:
        """Whether a norm of the fusion has these rows, and norms the last dim alone."""
        shapes = [from_mlir(value.type).shape for value in (*node.operands, *node.values)]
        return shapes[0][:-1] == rows and (*rows, 1) in shapes  # a statistic of each row

    def _choose(self, cut: _Cut) -> _Chosen:
        chosen, local = _Chosen(), self._local(cut)
        for node in self._graph.nodes:
            is_cut = any(v in chosen.cut for v in node.operands)
            if (
                node.name == ALL_REDUCE
                and is_cut
                and self._is_sum(node, cut)
                and self._is_partial(node.operands[0], cut)
            ):
                chosen.ended.append(node)
                chosen.nodes.append(node)
                chosen.cut[node.values[0]] = None
                continue
            partial = [v for v in node.operands if v not in chosen.cut and self._is_partial(v, cut)]
            is_cut &= not any(v in local and v not in chosen.cut and v not in partial for v in node.operands)
            if node.name == ALL_REDUCE and self._belongs(node, cut, chosen):
                chosen.sums.append(node)
                chosen.nodes.append(node)
                chosen.cut[node.values[0]] = None
            elif is_cut and node.name in self._norms and self._is_row_norm(node, cut.rows):
                chosen.has_norm = True
                chosen.nodes.append(node)
                chosen.cut.update(dict.fromkeys(v for v in node.values if _has_rows(node, v, cut.rows)))
                chosen.scattered.update(dict.fromkeys(partial))
                continue
            elif is_cut and _takes_rows_alone(node, cut.rows):
                chosen.nodes.append(node)
                chosen.cut.update(dict.fromkeys(node.values))
                chosen.scattered.update(dict.fromkeys(partial))
                continue
            chosen.whole.update(dict.fromkeys(v for v in node.operands if v in chosen.cut))
        chosen.whole.update(dict.fromkeys(v for v in chosen.cut if v in self._returned))
        return chosen

    def _is_sum(self, node: Node, cut: _Cut) -> bool:
        assert node.call is not None
        _, axes, reduction = node.call.args
        return tuple(axes) == cut.axes and reduction == Reduce.SUM

    def _is_partial(self, value: Value, cut: _Cut) -> bool:
        """Whether a value is to be summed over the axes of the cut."""
        partial = dict(from_mlir(value.type).placement_on(self._mesh).partial) if is_tensor(value.type) else {}
        return all(partial.get(axis) == Reduce.SUM for axis in cut.axes)

    def _local(self, cut: _Cut) -> set[Value]:
        """The values that differ on the ranks of a group: sharded ones, and what depends on a rank's place."""
        local = {value for value, _ in self._graph.arguments if self._is_apart(value, cut)}
        for node in self._graph.nodes:
            joins = node.name in (ALL_REDUCE, ALL_GATHER) and {*cut.axes} <= {*(node.call.args[1] if node.call else ())}
            differs = any(v in local and not (node.callee and self._is_apart(v, cut)) for v in node.operands)
            if not joins and (differs or (node.name.startswith("comm.") and node.name not in _ALIKE)):
                local.update(node.values)
            local.update(v for v in node.values if self._is_apart(v, cut))
        return local

    def _is_apart(self, value: Value, cut: _Cut) -> bool:
        """Whether a type says that the ranks of a group hold different values."""
        if not is_tensor(value.type):
            return True
        placement = from_mlir(value.type).placement_on(self._mesh)
        return any(placement.on(axis) != Replicate() for axis in cut.axes)

    def _belongs(self, node: Node, cut: _Cut, chosen: _Chosen) -> bool:
        value = node.values[0]
        if not self._is_sum(node, cut) or not has_rows(value, cut.rows):
            return False
        type_ = from_mlir(value.type)
        fits = len(type_.shape) == len(cut.rows) + 1 and splits(type_, cut.dim, cut.axes, self._mesh)
        return fits and self._reaches(node, cut.rows, chosen.cut)


@dataclass
class _Rewriting:
    """Writes what was chosen."""

    cut: _Cut
    mesh: Mesh
    chosen: _Chosen
    parts: dict[Value, Value] = field(default_factory=dict)
    """By value: a rank's rows of it."""

    def run(self) -> None:
        """Rewrite the sums and what follows, in order; then erase what they were."""
        sums, ended = set(self.chosen.sums), set(self.chosen.ended)
        for node in self.chosen.nodes:
            with context(), mlir.InsertionPoint(node.op):
                emitter = Emitter(node.op.location)
                if node in sums:
                    self._scatter(node, emitter)
                elif node in ended:
                    self.parts[node.values[0]] = self.parts[node.operands[0]]
                else:
                    self._on_part(node, emitter)
                for value in node.values:
                    if value in self.chosen.whole:
                        type_, axes = from_mlir(value.type), list(self.cut.axes)
                        whole = emitter.op(ALL_GATHER, self.parts[value], axes, self.cut.dim, type=type_)
                        value.replace_all_uses_with(whole)
        for node in reversed(self.chosen.nodes):
            node.op.operation.erase()

    def _scatter(self, node: Node, emitter: Emitter) -> None:
        assert node.call is not None
        value, axes, reduction = node.call.args
        type_ = self._part_type(node.values[0])
        self.parts[node.values[0]] = emitter.op(REDUCE_SCATTER, value, axes, self.cut.dim, reduction, type=type_)

    def _on_part(self, node: Node, emitter: Emitter) -> None:
        operands = [self._part(node, value, emitter) for value in node.operands]
        types = [self._result_type(node, value) for value in node.values]
        made = build_like(node, operands, regroup(node.results, [to_mlir(t) for t in types]), node.op.location)
        for value, part in zip(node.values, made, strict=True):
            if _has_rows(node, value, self.cut.rows):
                self.parts[value] = part
            elif not {*self.cut.axes}.isdisjoint(dict(from_mlir(value.type).placement_on(self.mesh).partial)):
                value.replace_all_uses_with(part)
            else:  # the gradient of a weight: each rank has the sum over its rows
                axes = list(self.cut.axes)
                value.replace_all_uses_with(
                    emitter.op(ALL_REDUCE, part, axes, str(Reduce.SUM), type=from_mlir(value.type))
                )

    def _part(self, node: Node, value: Value, emitter: Emitter) -> Value:
        """A rank's rows of an operand; what has no rows is the same on all ranks."""
        if not _has_rows(node, value, self.cut.rows):
            return value
        if value in self.chosen.scattered and value not in self.parts:
            axes, type_ = list(self.cut.axes), self._part_type(value)
            self.parts[value] = emitter.op(REDUCE_SCATTER, value, axes, self.cut.dim, str(Reduce.SUM), type=type_)
        if value not in self.parts:
            chunk = self.cut.rows[self.cut.dim] // axes_size(self.mesh, self.cut.axes)
            type_ = self._part_type(value)
            self.parts[value] = emitter.op("comm.shard", value, list(self.cut.axes), self.cut.dim, chunk, type=type_)
        return self.parts[value]

    def _part_type(self, value: Value) -> TensorType:
        type_ = from_mlir(value.type)
        placement = type_.placement_on(self.mesh)
        left = tuple(pair for pair in placement.partial if pair[0] not in self.cut.axes)
        whole = type_.placed(replace(placement, partial=left), self.mesh)
        return scattered_type(whole, self.cut.dim, self.cut.axes, self.mesh)

    def _result_type(self, node: Node, value: Value) -> TensorType:
        if _has_rows(node, value, self.cut.rows):
            return self._part_type(value)
        type_ = from_mlir(value.type)
        placement = type_.placement_on(self.mesh)
        partial = {**dict(placement.partial), **dict.fromkeys(self.cut.axes, Reduce.SUM)}
        ordered = tuple((axis, partial[axis]) for axis, _ in self.mesh if axis in partial)
        return type_.placed(replace(placement, partial=ordered), self.mesh)


def _takes_rows_alone(node: Node, rows: tuple[int, ...]) -> bool:
    return (is_pointwise(node.name) or node.name == _COPY) and takes_rows_alone(node, rows)


def _has_rows(node: Node, value: Value, rows: tuple[int, ...]) -> bool:
    """Whether an operand or a result of a node has the rows: what has fewer dims broadcasts over them."""
    rank = max(len(from_mlir(each.type).shape) for each in node.values)
    return has_rows(value, rows) and len(from_mlir(value.type).shape) == rank


def _results(nodes: Sequence[Node]) -> list[Value]:
    return [node.values[0] for node in nodes]
