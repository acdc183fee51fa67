"""Faults of passes: the IR after the pass computes something else, or its order is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stretto.ir.collectives import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from stretto.ir.operations import Call
from stretto.ir.types import from_mlir

from .faults import SourceFault

PARTITION = "partition-tensors"
RESHARD = "passes.partition.reshard:Resharder"
VOCABULARY = "passes.partition.vocabulary:Vocabulary"
REFERENCE = "passes.normalize.idioms.reference:REFERENCE"
BODIES = "passes.normalize.idioms.bodies:BODIES"


def _emitting(name: str, altered: Callable[[Any, Any, tuple[Any, ...]], tuple[str, tuple[Any, ...]]]) -> Any:
    """`Resharder._emit` that emits one collective differently."""

    def make(emit: Any) -> Any:
        def faulty(self: Any, emitted: str, after: Any, *args: Any) -> None:
            if emitted == name:
                emitted, args = altered(self, after, args)
            emit(self, emitted, after, *args)

        return faulty

    return make


def _rolled_first(self: Any, after: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """Cut from what is rolled by one chunk."""
    _, dim, chunk = args
    self.value = self.emitter.like("aten.roll.default", self.value, [chunk], [dim])
    return "comm.shard", args


def _copied(self: Any, after: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    return "aten.clone.default", ()


def _cut_unreduced(self: Any, after: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    axes, dim, _ = args
    return "comm.shard", (axes, dim, from_mlir(self.value.type).shape[dim] // self.emitter.size(tuple(axes)))


def _fewer_axes(self: Any, after: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    axes, *rest = args
    return ALL_REDUCE, (axes[:-1] or axes, *rest)


def _maximum(self: Any, after: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    return ALL_REDUCE, (args[0], "max")


def _scattered_maximum(self: Any, after: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    return REDUCE_SCATTER, (*args[:2], "max")


def _gathered_from_rolled(self: Any, after: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    self.value = self.emitter.like("aten.roll.default", self.value, [1], [args[1]])
    return ALL_GATHER, args


def _partial_everywhere(to_partial: Any) -> Any:
    def faulty(self: Any, axis: str, reduce: Any) -> None:
        self._emit("aten.clone.default", replace(self.placement, partial=(*self.placement.partial, (axis, reduce))))

    return faulty


def _shifted(offset: int = 0, comparison: str = "lt") -> Any:
    def make(shifted: Any) -> Any:
        def faulty(self: Any, indices: Any) -> Any:
            emitter = self.emitter
            original = emitter.op

            def op(name: str, *args: Any, **kwargs: Any) -> Any:
                if name == "comm.offset":
                    args = (args[0], args[1] + offset)
                if name == "aten.lt.Scalar":
                    name = f"aten.{comparison}.Scalar"
                return original(name, *args, **kwargs)

            emitter.op = op
            try:
                return shifted(self, indices)
            finally:
                del emitter.op

        return faulty

    return make


def _only(reduce: str) -> Any:
    """Of the statistics of a loss, those with one reduction are all-reduced."""
    return lambda all_reduced: (
        lambda self, value, how: (
            all_reduced(self, value, how) if how == reduce else self.emitter.like("aten.clone.default", value)
        )
    )


def _all_inside(own: Any) -> Any:
    def faulty(self: Any, indices: Any) -> Any:
        found = own(self, indices)
        negated = self.emitter.like("aten.logical_not.default", found.inside)
        return replace(found, inside=self.emitter.like("aten.logical_or.default", found.inside, negated))

    return faulty


def _wider_masks(masked: Any) -> Any:
    def faulty(self: Any, index: int, value: Any, chosen: Any, emitter: Any) -> Any:
        original = emitter.like

        def like(name: str, operand: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "comm.mask":
                args = (*args[:3], args[3] - 1, args[4])
            return original(name, operand, *args, **kwargs)

        emitter.like = like
        try:
            return masked(self, index, value, chosen, emitter)
        finally:
            del emitter.like

    return faulty


def _scaled(factor: float) -> Any:
    """A function of tensors whose first result is scaled."""

    def make(function: Any) -> Any:
        def faulty(*args: Any) -> Any:
            results = function(*args)
            if isinstance(results, tuple):
                return (results[0] * factor, *results[1:])
            return results * factor

        faulty.__code__ = faulty.__code__
        return faulty

    return make


def _without(position: int, value: Any) -> Any:
    """A function that gets another value for one argument."""
    return lambda function: lambda *args: function(*args[:position], value, *args[position + 1 :])


def _tokens_not_restored(tokens_first: Any) -> Any:
    def faulty(emitter: Any, value: Any, leading: Any) -> Any:
        return emitter.like("aten.clone.default", value)

    return faulty


def _views_by_name_alone(earlier: Any) -> Any:
    from stretto.passes.rewriting import producer

    def faulty(site: Any) -> Any:
        inner = producer(site.call.args[0])
        if inner is not None and inner.name == site.call.name == "aten.transpose.int":
            return inner.args[0] if inner.args[0].type == site.op.results[0].type else None
        if site.call.name == "aten.t.default" and site.call.args[0].type == site.op.results[0].type:
            return site.call.args[0]
        return earlier(site)

    return faulty


def _first_layers_inputs(call: Any) -> Any:
    def faulty(self: Any, instance: Any) -> None:
        first = next(each for each in self.exported if self.names[each] == self.names[instance])
        inputs = tuple(
            old if _is_argument(old) and _is_argument(new) else new
            for old, new in zip(first.inputs, instance.inputs, strict=True)
        )
        original = instance.inputs
        object.__setattr__(instance, "inputs", list(inputs))
        try:
            call(self, instance)
        finally:
            object.__setattr__(instance, "inputs", original)

    return faulty


def _is_argument(value: Any) -> bool:
    return type(value.owner).__name__ == "Block"


def _built(altered: Callable[[Call], Call]) -> Any:
    """`build` that builds another call."""
    return lambda build: lambda call, types, loc: build(altered(call), types, loc)


def _maximum_started(call: Call) -> Call:
    is_sum = call.name.endswith("_start") and call.args[-1] == "sum"
    return replace(call, args=(*call.args[:-1], "max")) if is_sum else call


def _doubled_sums(call: Call) -> Call:
    return replace(call, args=(call.args[1], call.args[1])) if call.name == "aten.add.Tensor" else call


IN_PASSES = (
    SourceFault("an all-reduce is a copy", f"{RESHARD}/_emit", _emitting(ALL_REDUCE, _copied), PARTITION),
    SourceFault("an all-reduce takes a maximum", f"{RESHARD}/_emit", _emitting(ALL_REDUCE, _maximum), PARTITION),
    SourceFault("an all-reduce leaves out an axis", f"{RESHARD}/_emit", _emitting(ALL_REDUCE, _fewer_axes), PARTITION,
                case="sequence"),
    SourceFault(
        "a scatter does not reduce", f"{RESHARD}/_emit", _emitting(REDUCE_SCATTER, _cut_unreduced), PARTITION,
        case="sequence",
    ),
    SourceFault(
        "a reduce-scatter takes a maximum", f"{RESHARD}/_emit", _emitting(REDUCE_SCATTER, _scattered_maximum),
        PARTITION, case="sequence",
    ),
    SourceFault(
        "a gather takes rolled rows", f"{RESHARD}/_emit", _emitting(ALL_GATHER, _gathered_from_rolled), PARTITION,
        case="sequence",
    ),
    SourceFault(
        "a rank cuts the chunk of another", f"{RESHARD}/_emit", _emitting("comm.shard", _rolled_first), PARTITION,
        case="sequence",
    ),
    SourceFault("a replicated term is added by every rank", f"{RESHARD}/_to_partial", _partial_everywhere, PARTITION),
    SourceFault(
        "padding is not masked", "passes.partition.partition_tensors:_Partitioner/_masked",
        lambda masked: lambda self, index, value, chosen, emitter: self.values[value], PARTITION,
    ),
    SourceFault(
        "a mask ends one element early", "passes.partition.partition_tensors:_Partitioner/_masked", _wider_masks,
        PARTITION,
    ),
    SourceFault("a rank's classes begin one too early", f"{VOCABULARY}/_shifted", _shifted(offset=-1), PARTITION),
    SourceFault("two ranks own one class", f"{VOCABULARY}/_shifted", _shifted(comparison="le"), PARTITION),
    SourceFault("a loss's maximum is the rank's own", f"{VOCABULARY}/all_reduced", _only("sum"), PARTITION),
    SourceFault("a loss's sums are the rank's own", f"{VOCABULARY}/all_reduced", _only("max"), PARTITION),
    SourceFault("every rank owns all classes", f"{VOCABULARY}/own", _all_inside, PARTITION),
    SourceFault(
        "a batch norm's sums are the rank's own", "passes.partition.batch_norm:_Images/total",
        lambda total: lambda self, value: self.per_channel("aten.sum.dim_IntList", value, self.dims, False),
        PARTITION, case="images",
    ),
    SourceFault(
        "a batch norm counts its own rows", "passes.partition.batch_norm:_Images/mean",
        lambda mean: lambda self, value: self.per_channel(
            "aten.div.Scalar", self.total(value), float(self.count) / self.emitter.size(self.shards.axes)
        ),
        PARTITION, case="images",
    ),
    SourceFault(
        "a mean divides by one more", "passes.normalize.split_means:_mean",
        lambda mean: lambda site, elements: mean(site, elements + 1), "split-means",
    ),
    SourceFault(
        "ignored targets are counted", "passes.normalize.split_counts:count_of",
        lambda count: lambda emitter, labels, ignored, weight, type_: count(emitter, labels, -1, weight, type_),
        "split-counts", case="pipeline",
    ),
    SourceFault("a written-out loss is doubled", "passes.normalize.expand_losses:_expansion",
                lambda expansion: lambda name: _scaled(2.0)(expansion(name)), "expand-losses"),
    SourceFault(
        "a norm's epsilon is left out", f"{REFERENCE}/nn.rms_norm",
        lambda norm: lambda x, weight, eps: norm(x, weight, 0.0), "lower-idioms",
    ),
    SourceFault(
        "a norm's gradient is scaled", f"{REFERENCE}/nn.rms_norm_backward",
        lambda norm: lambda grad, x, rstd, weight: _scaled(0.5)(norm)(grad, x, rstd, weight), "lower-idioms",
    ),
    SourceFault(
        "a loss's gradient keeps ignored rows", f"{REFERENCE}/nn.cross_entropy_backward",
        lambda loss: lambda scale, logits, labels, logsumexp, ignore_index: loss(
            scale, logits, labels, logsumexp, -1
        ),
        "lower-idioms", case="pipeline",
    ),
    SourceFault(
        "attention is not causal", f"{BODIES}/nn.attention",
        lambda attention: lambda query, key, value, mask, causal, *rest: attention(
            query, key, value, mask, False, *rest
        ),
        "outline-idioms",
    ),
    SourceFault(
        "attention's gradient has another scale", f"{BODIES}/nn.attention_backward",
        lambda attention: lambda grad, query, key, value, out, logsumexp, mask, causal, scale, *offsets: attention(
            grad, query, key, value, out, logsumexp, mask, causal, 1.0, *offsets
        ),
        "outline-idioms",
    ),
    SourceFault("a transpose is dropped", "passes.normalize.simplify_views:_earlier", _views_by_name_alone,
                "simplify-views"),
    SourceFault("every layer is called with the first's parameters", "passes.layers.fold_layers:_Rebuild/_call",
                _first_layers_inputs, "fold-layers"),
    SourceFault(
        "a collective moves before its operand", "passes.overlap.hoist_collectives:HoistCollectives/_independent",
        lambda independent: lambda self, collective, pending, is_barrier, is_entry: list(pending), "hoist-collectives",
    ),
    SourceFault(
        "a wait stands behind its first use", "passes.overlap.start_collectives:_first_of",
        lambda first: lambda users: users[0], "start-collectives",
        case="sequence",
    ),
    SourceFault(
        "a started sum takes a maximum", "passes.overlap.start_collectives:build", _built(_maximum_started),
        "start-collectives",
    ),
    SourceFault(
        "every microbatch reads the last rows", "passes.pipelining.entries:_slice",
        lambda cut: lambda value, type_, microbatch: cut(value, type_, 1), "order-tasks",
        case="pipeline",
    ),
    SourceFault(
        "the last microbatch is added twice", "passes.pipelining.microbatch_sums:build", _built(_doubled_sums),
        "order-tasks", case="pipeline",
    ),
    SourceFault(
        "stages exchange microbatches", "passes.pipelining.messages:Messages/sent_after",
        lambda after: lambda self, call, microbatch: [
            (destination, (value, 1 - number)) for destination, (value, number) in after(self, call, microbatch)
        ],
        "order-tasks", case="pipeline",
    ),
    SourceFault(
        "a tensor is sent to its sender", "passes.pipelining.messages:Transfers/send",
        lambda send: lambda self, value, destination, loc: send(self, value, self.coordinate, loc), "order-tasks",
        case="pipeline",
    ),
)  # fmt: skip
"""All faults of passes."""
