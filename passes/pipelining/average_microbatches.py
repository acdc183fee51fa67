"""Make of a step of one microbatch that of a batch whose microbatches are computed alone: the mean of them all.

Before (one microbatch of 4 rows)                    After (mesh with an axis "microbatch" of 2)
  main(%x: tensor<4x8>, %t)                            main(%x: tensor<4x8, {microbatch = "shard(0)"}>, %t)
  %y = aten.mm %x, %w                                  %z = aten.alias %x : tensor<4x8>
  %l = aten.mean %y                                    %y = aten.mm %z, %w
  %g = comm.all_reduce %p over ["dp"]                  %l = aten.mean %y
                                                       %m = aten.div %l, 2 : .. {microbatch = "partial(sum)"}
  return %l, %g                                        %r = comm.all_reduce %m over ["microbatch"]
                                                       %a = aten.alias %p : .. {microbatch = "partial(sum)"}
                                                       %g = comm.all_reduce %a over ["dp", "microbatch"]
                                                       return %r, %g

Losses and other floating numbers become means, gradients those of the mean; outputs with a row for each row of the
batch are put behind each other, so that the m-th microbatch of each data rank is the m-th part of its rows. Random
numbers are drawn as by so many forwards after each other: microbatch m of step s takes those of forward s * M + m.
Refused (E0404) is what has no such meaning: buffers that a step changes, and outputs that are neither.

Needs: level `comm`, captured and cut for one microbatch.   Keeps: names and order of arguments and results. It changes
the function, as the plan's `per microbatch` says.   Cost: none beside a loop that accumulates: where sums over ranks,
adds and casts are all that is still done to a gradient, they are done once a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from ...diagnostics import StrettoError
from ...dsl.pipeline import Pipeline
from ...dsl.plan import Plan
from ...ir.bindings import Location, Value, mlir
from ...ir.collectives import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from ...ir.dialects.context import context
from ...ir.locations import Origin, to_location
from ...ir.module import Level, Module, Record, operations, refresh_type, terminator
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import AxisPlacement, Mesh, Partial, Shard, axes_size
from ...ir.types import TensorType, from_mlir, to_mlir
from ..base import Pass, Remark, RemarkKind, Report
from ..graph import Graph, Node
from ..rewriting import Emitter, erase_unused
from .attributes import check_one_microbatch
from .time_axis import in_time

_SUMS = (ALL_REDUCE, REDUCE_SCATTER)
_ADD, _CAST = "aten.add.Tensor", "aten._to_copy.default"
_LAST = (*_SUMS, _ADD, _CAST)
"""What may be done to a gradient after the sum over time."""


@dataclass(frozen=True)
class AverageMicrobatches(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "average-microbatches"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    keeps_values: ClassVar[bool] = False
    plan: Plan
    """The plan; its statement about the pipeline is used."""

    def run(self, module: Module) -> Report:
        said = self.plan.pipeline
        if said is None or not said.per_microbatch:
            return Report()
        check_one_microbatch(self.name, self.plan, module)
        average = _Average(module, said)
        average.rewrite()
        message = f"microbatches computed alone: {average.says()} over {said.microbatches} of them"
        return Report(1, (Remark(self.name, RemarkKind.APPLIED, message, span=said.span_of("per")),))


@dataclass
class _Average:
    """The rewrite of `main`."""

    module: Module
    said: Pipeline
    counts: dict[str, int] = field(default_factory=dict)
    """How many results are treated in which way."""

    def __post_init__(self) -> None:
        self.main = self.module.functions()["main"]
        self.graph = Graph.of(self.main)
        self.mesh: Mesh = self.module.mesh
        self.inputs, self.rows, self.axes = _batch(self.graph, self.mesh)
        sources = [*self.inputs, *(v for v, record in self.graph.arguments if record.get("kind") == "random")]
        self.varying = {*sources, *(v for node in self.graph.dependents(sources) for v in node.values)}

    def rewrite(self) -> None:
        """Take whole batches, compute each microbatch of them, and give what all of them together make."""
        for value, record in self.graph.results:
            self._check(value, record)
        self.module.mesh = (*self.mesh, (MICROBATCH, self.said.microbatches))
        self._share_arguments()
        self.graph, last = Graph.of(self.main), terminator(self.main)
        for at, (value, record) in enumerate(self.graph.results):
            maker = self.graph.maker.get(value)
            location = to_location(Origin()) if maker is None else maker.op.location
            with context(), mlir.InsertionPoint(last):
                last.operands[at] = self._result(value, record, location)
        erase_unused(self.main, _LAST)
        refresh_type(self.main)

    def says(self) -> str:
        """What becomes of the results, for a remark."""
        return ", ".join(f"{count} {what}" for what, count in self.counts.items())

    def _share_arguments(self) -> None:
        """Each microbatch gets rows and random numbers of its own, and one share of the loss's tangent."""
        for value, record in self.graph.arguments:
            kind = record.get("kind")
            if kind not in ("tangent", "random") and value not in self.inputs:
                continue
            users = [(use.owner, use.operand_number) for use in value.uses]
            with context(), mlir.InsertionPoint(next(operations(self.main))):
                emitter = Emitter(to_location(Origin(backward=kind == "tangent")))
                if kind == "input":
                    made = self._own_rows(emitter, value)
                else:
                    made = self._share(emitter, value) if kind == "tangent" else self._own_draws(emitter, value)
            for user, number in users:
                user.operands[number] = made
            self.varying.add(made)

    def _own_rows(self, emitter: Emitter, value: Value) -> Value:
        """The rows of a batch that a microbatch has, as the step of a microbatch takes them."""
        tensor = from_mlir(value.type)
        value.set_type(to_mlir(self._part(tensor, 0)))
        return emitter.op("aten.alias.default", value, type=tensor)

    def _share(self, emitter: Emitter, value: Value) -> Value:
        return emitter.like("aten.div.Scalar", value, self.said.microbatches)

    def _own_draws(self, emitter: Emitter, state: Value) -> Value:
        """(seed, step) becomes (seed, step * M + m)."""
        one = TensorType(torch.int64, (1,))
        seed, step = (emitter.op("aten.slice.Tensor", state, 0, at, at + 1, type=one) for at in (0, 1))
        first = emitter.like("aten.mul.Scalar", step, self.said.microbatches)
        own = emitter.op("comm.offset", [MICROBATCH], 1, type=TensorType(torch.int64, ()))
        return emitter.op("aten.cat.default", [seed, emitter.like("aten.add.Tensor", first, own)], 0,
                          type=from_mlir(state.type))  # fmt: skip

    def _check(self, value: Value, record: Record) -> None:
        """Raise E0404 for a result that microbatches computed alone do not give."""
        kind, name = record.get("kind"), record.get("name") or f"number {record.get('index', 0)}"
        if kind == "buffer":
            raise self._refused(
                f'a step changes buffer "{name}"',
                "take a layer that keeps no such state (a batch norm with track_running_stats=False, a group norm), "
                'call the model in eval mode, or leave "per microbatch" out',
            )
        if kind == "output" and value in self.varying and not self._is_number(value) and not self._has_rows(value):
            shape = list(from_mlir(value.type).global_shape(self.mesh))
            raise self._refused(
                f'output "{name}" of shape {shape} is no floating number and has no row for each of the '
                f"{self.rows} rows of a microbatch, cut as the batch is",
                "return its mean or a row for each row of the batch, or leave it out",
            )

    def _refused(self, why: str, help: str) -> StrettoError:
        message = f"microbatches cannot be computed alone: {why}"
        return StrettoError("E0404", message, span=self.said.span_of("per"), help=help)

    def _is_number(self, value: Value) -> bool:
        tensor = from_mlir(value.type)
        return tensor.shape == () and tensor.dtype.is_floating_point

    def _has_rows(self, value: Value) -> bool:
        """Whether dim 0 is the batch's, cut over the data axes as that of inputs or over none."""
        tensor = from_mlir(value.type)
        cut = tensor.placement_on(self.mesh).dims[:1]
        return tensor.global_shape(self.mesh)[:1] == (self.rows,) and cut in ((self.axes,), ((),))

    def _result(self, value: Value, record: Record, location: Location) -> Value:
        """What a result of one microbatch is of all of them."""
        emitter = Emitter(location)
        if record.get("kind") == "gradient":
            is_input = any(each.get("name") == record["name"] for v, each in self.graph.arguments if v in self.inputs)
            return self._counted("gradients of rows joined", self._part_of_rows(emitter, value)) if is_input else (
                self._counted("gradients added up", self._sum(value, location))
            )  # fmt: skip
        if value not in self.varying:
            return value
        if not self._is_number(value):
            return self._counted("outputs joined", self._rows(emitter, value))
        tensor = from_mlir(value.type)
        part = emitter.op("aten.div.Scalar", value, self.said.microbatches, type=in_time(tensor, Partial()))
        mean = emitter.op(ALL_REDUCE, part, [MICROBATCH], "sum", type=tensor)
        return self._counted("outputs averaged", mean)

    def _counted(self, what: str, value: Value) -> Value:
        self.counts[what] = self.counts.get(what, 0) + 1
        return value

    def _sum(self, value: Value, location: Location) -> Value:
        """The sum of a gradient over time, taken before the sum over ranks where that is the last thing done to it."""
        node, emitter = self.graph.maker.get(value), Emitter(location)
        tensor = from_mlir(value.type)
        if node is not None and node.call is not None and self._is_last(node, value):
            emitter = Emitter(node.op.location)
            args = node.call.args
            if node.name == ALL_REDUCE and args[2] == "sum":
                part = self._addend(emitter, args[0])
                return emitter.op(ALL_REDUCE, part, [*args[1], MICROBATCH], "sum", type=tensor)
            if node.name == REDUCE_SCATTER and args[3] == "sum":
                return emitter.op(REDUCE_SCATTER, self._sum(args[0], node.op.location), *args[1:], type=tensor)
            if node.name == _CAST and self._is_added_up_before(node):
                return emitter.op(_CAST, self._sum(args[0], node.op.location), type=tensor, **node.call.kwargs)
            if node.name == _ADD and _adds_alike(node):
                return emitter.op(_ADD, *(self._sum(each, node.op.location) for each in args), type=tensor)
        return emitter.op(ALL_REDUCE, self._addend(emitter, value), [MICROBATCH], "sum", type=tensor)

    def _is_last(self, node: Node, value: Value) -> bool:
        """Whether nothing of the step uses the value, or its only use is by what is added up after the sum."""
        results = [v for v, _ in self.graph.results if v == value]
        return len(self.graph.users.get(value, [])) + len(results) == 1

    def _is_added_up_before(self, cast: Node) -> bool:
        """Whether a cast is of a sum over ranks, in the dtype that the plan says, or loses digits."""
        [value], [made] = cast.operands, cast.values
        maker, dtypes = self.graph.maker.get(value), [from_mlir(each.type).dtype for each in (value, made)]
        return (maker is not None and maker.name in _SUMS) or dtypes[0].itemsize > dtypes[1].itemsize

    def _addend(self, emitter: Emitter, value: Value) -> Value:
        """The value as one of the addends of a sum over time."""
        return emitter.op("aten.alias.default", value, type=in_time(from_mlir(value.type), Partial()))

    def _part_of_rows(self, emitter: Emitter, value: Value, dim: int = 0) -> Value:
        """The value as the part that a microbatch has of the rows, which lie along a dim."""
        return emitter.op("aten.alias.default", value, type=self._part(from_mlir(value.type), dim))

    def _rows(self, emitter: Emitter, value: Value) -> Value:
        """The rows of all microbatches, where those of each data rank stand together."""
        tensor, ranks = from_mlir(value.type), axes_size(self.mesh, self.axes)
        if ranks == 1 or tensor.placement_on(self.mesh).dims[0] == self.axes:
            return self._joined(emitter, self._part_of_rows(emitter, value), tensor, 0)
        by_rank = TensorType(
            tensor.dtype,
            (ranks, tensor.shape[0] // ranks, *tensor.shape[1:]),
            tuple((axis, _behind(placement)) for axis, placement in tensor.placement),
            tensor.extents and (ranks, tensor.extents[0] // ranks, *tensor.extents[1:]),
        )
        parted = emitter.op("aten.view.default", value, list(by_rank.shape), type=by_rank)
        joined = self._joined(emitter, self._part_of_rows(emitter, parted, 1), by_rank, 1)
        made = self._of_all(tensor, 0)
        return emitter.op("aten.view.default", joined, list(made.shape), type=made)

    def _joined(self, emitter: Emitter, part: Value, tensor: TensorType, dim: int) -> Value:
        return emitter.op(ALL_GATHER, part, [MICROBATCH], dim, type=self._of_all(tensor, dim))

    def _of_all(self, tensor: TensorType, dim: int) -> TensorType:
        """The type of all microbatches' rows behind each other along a dim."""
        count = self.said.microbatches
        return replace(
            tensor,
            shape=_times(tensor.shape, dim, count),
            extents=tensor.extents and _times(tensor.extents, dim, count),
        )

    def _part(self, tensor: TensorType, dim: int) -> TensorType:
        """The type of one microbatch's rows as a part of them all."""
        return in_time(replace(self._of_all(tensor, dim), shape=tensor.shape), Shard(dim))


def _times(shape: tuple[int, ...], dim: int, count: int) -> tuple[int, ...]:
    return tuple(n * count if at == dim else n for at, n in enumerate(shape))


def _batch(graph: Graph, mesh: Mesh) -> tuple[list[Value], int | None, tuple[str, ...]]:
    """The inputs that have the batch, its rows, and the data axes that cut them: dim 0 is that of the first input."""
    found = [(v, from_mlir(v.type)) for v, record in graph.arguments if record.get("kind") == "input"]
    shapes = [(value, tensor, tensor.global_shape(mesh)) for value, tensor in found if tensor.shape]
    rows = shapes[0][2][0] if shapes else None
    of_batch = [(value, tensor) for value, tensor, shape in shapes if shape[0] == rows]
    axes = of_batch[0][1].placement_on(mesh).dims[0] if of_batch else ()
    return [value for value, _ in of_batch], rows, axes


def _adds_alike(node: Node) -> bool:
    """Whether it adds two tensors of the type that it gives."""
    assert node.call is not None
    types = {str(v.type) for v in (*node.operands, *node.values)}
    return len(node.operands) == 2 and len(types) == 1 and bool(node.call.kwargs.get("alpha", 1) == 1)


def _behind(placement: AxisPlacement) -> AxisPlacement:
    """The placement of a tensor that gets one more dim in front of its first."""
    return Shard(placement.dim + 1) if isinstance(placement, Shard) else placement
