"""Turn the step of one microbatch into that of a batch: each microbatch is computed alone, and results are averaged.

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

Losses and other floating scalars become means, gradients those of the mean. Outputs with a row for each row of the
batch are concatenated, so that the m-th microbatch of each data rank is the m-th part of its rows. The RNG state of
microbatch m of step s is that of forward s * M + m, as if the M microbatches were forwards after each other. Refused
(E0404): buffers that a step changes, and outputs of neither kind.

Needs: level `comm`, captured and partitioned for one microbatch.   Keeps: names and order of arguments and results. It
changes the function, as the plan's `per microbatch` demands.   Cost: that of a loop that accumulates gradients: if only
sums over ranks, adds and casts follow a gradient, they run once a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from ...diagnostics import StrettoError
from ...dsl.pipeline import Pipeline
from ...dsl.plan import Plan
from ...dsl.resolve_values import batch_inputs
from ...ir.attributes import from_attribute
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
from ..sharding.check_batch import BATCH_RESULTS
from .attributes import check_one_microbatch
from .microbatch_analysis import with_microbatch_axis

_SUMS = (ALL_REDUCE, REDUCE_SCATTER)
_ADD, _CAST = "aten.add.Tensor", "aten._to_copy.default"
_AFTER_SUM = (*_SUMS, _ADD, _CAST)
"""Operations on a gradient that may run after the sum over microbatches."""


@dataclass(frozen=True)
class AverageMicrobatches(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "average-microbatches"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.COMM})
    keeps_values: ClassVar[bool] = False
    averages_microbatches: ClassVar[bool] = True
    plan: Plan
    """The plan; its statement about the pipeline is used."""

    def run(self, module: Module) -> Report:
        pipeline = self.plan.pipeline
        if pipeline is None or not pipeline.per_microbatch:
            return Report()
        check_one_microbatch(self.name, self.plan, module)
        average = _Average(module, self.plan, pipeline)
        average.rewrite()
        message = f"microbatches computed alone: {average.summary()} over {pipeline.microbatches} of them"
        return Report(1, (Remark(self.name, RemarkKind.APPLIED, message, span=pipeline.span_of("per")),))


@dataclass
class _Average:
    """The rewrite of `main`."""

    module: Module
    plan: Plan
    pipeline: Pipeline
    counts: dict[str, int] = field(default_factory=dict)
    """The number of results by treatment."""

    def __post_init__(self) -> None:
        self.main = self.module.functions()["main"]
        self.graph = Graph.of(self.main)
        self.mesh: Mesh = self.module.mesh
        self.inputs, self.rows, self.axes = _batch(self.plan, self.graph, self.mesh)
        self.noted = _batch_results(self.module, self.graph)
        sources = [*self.inputs, *(v for v, record in self.graph.arguments if record.get("kind") == "random")]
        self.varying = {*sources, *(v for node in self.graph.dependents(sources) for v in node.values)}

    def rewrite(self) -> None:
        """Rewrite main to take whole batches, compute each microbatch, and return the combined results."""
        for value, record in self.graph.results:
            self._check(value, record)
        self.module.mesh = (*self.mesh, (MICROBATCH, self.pipeline.microbatches))
        self._share_arguments()
        self.graph, last = Graph.of(self.main), terminator(self.main)
        for index, (value, record) in enumerate(self.graph.results):
            maker = self.graph.maker.get(value)
            location = to_location(Origin()) if maker is None else maker.op.location
            with context(), mlir.InsertionPoint(last):
                last.operands[index] = self._result(value, record, location)
        erase_unused(self.main, _AFTER_SUM)
        refresh_type(self.main)

    def summary(self) -> str:
        """The treatment of the results, for a remark."""
        return ", ".join(f"{count} {treatment}" for treatment, count in self.counts.items())

    def _share_arguments(self) -> None:
        """Give each microbatch its own rows and RNG state, and its share of the loss's tangent."""
        for value, record in self.graph.arguments:
            kind = record.get("kind")
            if kind not in ("tangent", "random") and value not in self.inputs:
                continue
            users = [(use.owner, use.operand_number) for use in value.uses]
            with context(), mlir.InsertionPoint(next(operations(self.main))):
                emitter = Emitter(to_location(Origin(backward=kind == "tangent")))
                if kind == "input":
                    own_value = self._own_rows(emitter, value)
                else:
                    own_value = (
                        self._share(emitter, value) if kind == "tangent" else self._own_rng_state(emitter, value)
                    )
            for user, number in users:
                user.operands[number] = own_value
            self.varying.add(own_value)

    def _own_rows(self, emitter: Emitter, value: Value) -> Value:
        """One microbatch's rows of the batch, with the type that the captured step takes."""
        tensor = from_mlir(value.type)
        value.set_type(to_mlir(self._part(tensor, 0)))
        return emitter.op("aten.alias.default", value, type=tensor)

    def _share(self, emitter: Emitter, value: Value) -> Value:
        return emitter.like("aten.div.Scalar", value, self.pipeline.microbatches)

    def _own_rng_state(self, emitter: Emitter, state: Value) -> Value:
        """(seed, step) becomes (seed, step * M + m)."""
        one = TensorType(torch.int64, (1,))
        seed, step = (emitter.op("aten.slice.Tensor", state, 0, index, index + 1, type=one) for index in (0, 1))
        first = emitter.like("aten.mul.Scalar", step, self.pipeline.microbatches)
        own = emitter.op("comm.offset", [MICROBATCH], 1, type=TensorType(torch.int64, ()))
        return emitter.op("aten.cat.default", [seed, emitter.like("aten.add.Tensor", first, own)], 0,
                          type=from_mlir(state.type))  # fmt: skip

    def _check(self, value: Value, record: Record) -> None:
        """Raise E0404 for a result that microbatches computed alone cannot give."""
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

    def _refused(self, reason: str, help: str) -> StrettoError:
        message = f"microbatches cannot be computed alone: {reason}"
        return StrettoError("E0404", message, span=self.pipeline.span_of("per"), help=help)

    def _is_number(self, value: Value) -> bool:
        tensor = from_mlir(value.type)
        return tensor.shape == () and tensor.dtype.is_floating_point

    def _has_rows(self, value: Value) -> bool:
        """Whether dim 0 is the batch's, sharded over the data axes as the inputs are, or not at all."""
        tensor = from_mlir(value.type)
        cut = tensor.placement_on(self.mesh).dims[:1]
        has_extent = tensor.global_shape(self.mesh)[:1] == (self.rows,)
        return has_extent and cut in ((self.axes,), ((),)) and (self.noted is None or value in self.noted)

    def _result(self, value: Value, record: Record, location: Location) -> Value:
        """The result of all microbatches, from that of one."""
        emitter = Emitter(location)
        if record.get("kind") == "gradient":
            is_input = any(
                argument.get("name") == record["name"] for v, argument in self.graph.arguments if v in self.inputs
            )
            return self._count("gradients of rows joined", self._part_of_rows(emitter, value)) if is_input else (
                self._count("gradients added up", self._sum(value, location))
            )  # fmt: skip
        if value not in self.varying:
            return value
        if not self._is_number(value):
            return self._count("outputs joined", self._join_rows(emitter, value))
        tensor = from_mlir(value.type)
        part = emitter.op(
            "aten.div.Scalar", value, self.pipeline.microbatches, type=with_microbatch_axis(tensor, Partial())
        )
        mean = emitter.op(ALL_REDUCE, part, [MICROBATCH], "sum", type=tensor)
        return self._count("outputs averaged", mean)

    def _count(self, treatment: str, value: Value) -> Value:
        self.counts[treatment] = self.counts.get(treatment, 0) + 1
        return value

    def _sum(self, value: Value, location: Location) -> Value:
        """The sum of a gradient over microbatches, before the sum over ranks if that is the last operation on it."""
        node, emitter = self.graph.maker.get(value), Emitter(location)
        tensor = from_mlir(value.type)
        if node is not None and node.call is not None and self._is_last(node, value):
            emitter = Emitter(node.op.location)
            args = node.call.args
            if node.name == ALL_REDUCE and args[2] == "sum":
                part = self._microbatch_term(emitter, args[0])
                return emitter.op(ALL_REDUCE, part, [*args[1], MICROBATCH], "sum", type=tensor)
            if node.name == REDUCE_SCATTER and args[3] == "sum":
                return emitter.op(REDUCE_SCATTER, self._sum(args[0], node.op.location), *args[1:], type=tensor)
            if node.name == _CAST and self._is_summed_before_cast(node):
                return emitter.op(_CAST, self._sum(args[0], node.op.location), type=tensor, **node.call.kwargs)
            if node.name == _ADD and _adds_same_type(node):
                return emitter.op(_ADD, *(self._sum(operand, node.op.location) for operand in args), type=tensor)
        return emitter.op(ALL_REDUCE, self._microbatch_term(emitter, value), [MICROBATCH], "sum", type=tensor)

    def _is_last(self, node: Node, value: Value) -> bool:
        """Whether the value has one use only: as a result, or by an operation that may run after the sum."""
        results = [v for v, _ in self.graph.results if v == value]
        return len(self.graph.users.get(value, [])) + len(results) == 1

    def _is_summed_before_cast(self, cast: Node) -> bool:
        """Whether a cast follows a sum over ranks in the plan's `reduce` dtype, or loses digits."""
        [value], [result] = cast.operands, cast.values
        maker, dtypes = self.graph.maker.get(value), [from_mlir(v.type).dtype for v in (value, result)]
        return (maker is not None and maker.name in _SUMS) or dtypes[0].itemsize > dtypes[1].itemsize

    def _microbatch_term(self, emitter: Emitter, value: Value) -> Value:
        """The value as one microbatch's term of a sum."""
        return emitter.op("aten.alias.default", value, type=with_microbatch_axis(from_mlir(value.type), Partial()))

    def _part_of_rows(self, emitter: Emitter, value: Value, dim: int = 0) -> Value:
        """The value as one microbatch's part of the rows along a dim."""
        return emitter.op("aten.alias.default", value, type=self._part(from_mlir(value.type), dim))

    def _join_rows(self, emitter: Emitter, value: Value) -> Value:
        """The rows of all microbatches, grouped by data rank."""
        tensor, ranks = from_mlir(value.type), axes_size(self.mesh, self.axes)
        if ranks == 1 or tensor.placement_on(self.mesh).dims[0] == self.axes:
            return self._joined(emitter, self._part_of_rows(emitter, value), tensor, 0)
        by_rank = TensorType(
            tensor.dtype,
            (ranks, tensor.shape[0] // ranks, *tensor.shape[1:]),
            tuple((axis, _shifted_dim(placement)) for axis, placement in tensor.placement),
            tensor.extents and (ranks, tensor.extents[0] // ranks, *tensor.extents[1:]),
            tensor.nests,
        )
        split = emitter.op("aten.view.default", value, list(by_rank.shape), type=by_rank)
        joined = self._joined(emitter, self._part_of_rows(emitter, split, 1), by_rank, 1)
        joined_type = self._all_microbatches(tensor, 0)
        return emitter.op("aten.view.default", joined, list(joined_type.shape), type=joined_type)

    def _joined(self, emitter: Emitter, part: Value, tensor: TensorType, dim: int) -> Value:
        return emitter.op(ALL_GATHER, part, [MICROBATCH], dim, type=self._all_microbatches(tensor, dim))

    def _all_microbatches(self, tensor: TensorType, dim: int) -> TensorType:
        """The type of all microbatches' rows, concatenated along a dim."""
        count = self.pipeline.microbatches
        return replace(
            tensor,
            shape=_scaled_dim(tensor.shape, dim, count),
            extents=tensor.extents and _scaled_dim(tensor.extents, dim, count),
        )

    def _part(self, tensor: TensorType, dim: int) -> TensorType:
        """The type of one microbatch's rows as a shard of all rows."""
        return with_microbatch_axis(replace(self._all_microbatches(tensor, dim), shape=tensor.shape), Shard(dim))


def _scaled_dim(shape: tuple[int, ...], dim: int, count: int) -> tuple[int, ...]:
    return tuple(n * count if index == dim else n for index, n in enumerate(shape))


def _batch(plan: Plan, graph: Graph, mesh: Mesh) -> tuple[list[Value], int | None, tuple[str, ...]]:
    """The inputs that are the batch, its extent, and the data axes that shard it."""
    inputs = {record["name"]: v for v, record in graph.arguments if record.get("kind") == "input"}
    types = {name: from_mlir(value.type) for name, value in inputs.items()}
    batch = batch_inputs(plan, {name: tensor.global_shape(mesh) for name, tensor in types.items()})
    if not batch:
        return [], None, ()
    first = types[batch[0]]
    return [inputs[name] for name in batch], first.global_shape(mesh)[0], first.placement_on(mesh).dims[0]


def _batch_results(module: Module, graph: Graph) -> frozenset[Value] | None:
    """The results that have the batch's rows; None where `check-batch` has not noted them."""
    attributes = module.operation.attributes
    if BATCH_RESULTS not in attributes:
        return None
    indices = from_attribute(attributes[BATCH_RESULTS])
    del attributes[BATCH_RESULTS]
    return frozenset(graph.results[index][0] for index in indices)


def _adds_same_type(node: Node) -> bool:
    """Whether it adds two tensors of its result's type."""
    assert node.call is not None
    types = {str(v.type) for v in (*node.operands, *node.values)}
    return len(node.operands) == 2 and len(types) == 1 and bool(node.call.kwargs.get("alpha", 1) == 1)


def _shifted_dim(placement: AxisPlacement) -> AxisPlacement:
    """The placement after a new dim is inserted in front."""
    return Shard(placement.dim + 1) if isinstance(placement, Shard) else placement
