"""Rules of ops that work along some dims (sums, extremes, softmax, sort): the other dims may be sharded.

A sum over a sharded dim is a partial sum, an extreme a partial extreme. A mean over a sharded dim has no strategy: the
mean is rewritten to a sum and a count before placements are chosen.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from ....ir.placement import AxisPlacement, Partial, Reduce, Shard
from .builders import P, Rule, dim, linear, strategy, uniform
from .call import Call
from .strategy import Lowering, Strategy
from .views import unflipped


def acted_dims(call: Call) -> tuple[int, ...]:
    """The dims that the op reduces or normalises; all of them where it names none."""
    rank = len(call.inputs[0].shape)
    named = call.operands.get("dim")
    dims = call.integers("dim") if named is not None else ()
    return tuple(sorted(dim(d, rank) for d in dims)) or tuple(range(rank))


def _other_dims(call: Call) -> list[Strategy]:
    """The dims that the op does not act on, at their output position after the op removes others."""
    acted = acted_dims(call)
    removes = len(call.out().shape) < len(call.inputs[0].shape)
    free = [d for d in range(len(call.inputs[0].shape)) if d not in acted]
    return [uniform(call, position if removes else d, d) for position, d in enumerate(free)]


def _contracted(call: Call, output: AxisPlacement) -> list[Strategy]:
    return [uniform(call, output, d) for d in acted_dims(call)]


def other_dims(call: Call) -> list[Strategy]:
    """var, sort, topk, argmax: only the other dims."""
    return _other_dims(call)


def linear_other_dims(call: Call) -> list[Strategy]:
    """mean: the other dims, and partial sums."""
    return [*_other_dims(call), uniform(call, P, P)]


def total(call: Call) -> list[Strategy]:
    """sum: over a sharded dim a partial sum."""
    return [*_other_dims(call), *_contracted(call, P), uniform(call, P, P)]


def _extreme(call: Call, reduce: Reduce) -> list[Strategy]:
    strategies = [*_other_dims(call), uniform(call, Partial(reduce), Partial(reduce))]
    return strategies + (_contracted(call, Partial(reduce)) if call.inputs[0].dtype.is_floating_point else [])


def largest(call: Call) -> list[Strategy]:
    """amax: over a sharded dim a partial max; not for integers, which have no infinity to pad with."""
    return _extreme(call, Reduce.MAX)


def smallest(call: Call) -> list[Strategy]:
    """amin: over a sharded dim a partial min."""
    return _extreme(call, Reduce.MIN)


def softmax(call: Call) -> list[Strategy]:
    """softmax, log_softmax: every dim; over the normalised one, the classes, statistics of rows are reduced inside."""
    by_class = [strategy([d], [d], fills=(-inf,), lowering=Lowering.SOFTMAX) for d in acted_dims(call)]
    return [*_other_dims(call), *by_class]


def log_softmax_backward(call: Call) -> list[Strategy]:
    """Backward of log_softmax: as forward, and linear in the gradient."""
    fills = (0.0, -inf)
    by_class = [strategy([d], [d, d], fills=fills, lowering=Lowering.SOFTMAX) for d in acted_dims(call)]
    return [*_other_dims(call), *by_class, linear(call, "grad_output")]


def softmax_backward(call: Call) -> list[Strategy]:
    """Backward of softmax: as forward, and linear in the gradient."""
    by_class = [strategy([d], [d, d], fills=(0.0, 0.0), lowering=Lowering.SOFTMAX) for d in acted_dims(call)]
    return [*_other_dims(call), *by_class, linear(call, "grad_output")]


def safe_softmax(call: Call) -> list[Strategy]:
    """_safe_softmax: every dim but the normalised one."""
    return _other_dims(call)


def logsumexp(call: Call) -> list[Strategy]:
    """logsumexp: every dim; over the one that is summed, statistics of rows are reduced inside."""
    by_class = [strategy([None], [d], fills=(-inf,), lowering=Lowering.SOFTMAX) for d in acted_dims(call)]
    return [*_other_dims(call), *(by_class if len(by_class) == 1 else [])]


def nll_loss(call: Call) -> list[Strategy]:
    """nll_loss_forward: by rows a summed loss is a partial sum; a mean is left out, as its count is not linear.

    Rows are the batch, and of nll_loss2d also what comes behind the classes. Without a reduction each row has its own
    loss, and the count is zero. By class each rank has its labels' terms.
    """
    if len(call.inputs[0].shape) == 1 or call.integer("reduction") not in (0, 2):
        return []
    is_summed = call.integer("reduction") != 0
    weight = [None] if call.maybe("weight") else []
    fills = (0.0, float(call.integer("ignore_index")), *weight)
    by_class = strategy([P, None], [1, None, *weight], lowering=Lowering.OFFSET)
    by_row = [
        strategy([P if is_summed else row, P], [d, row, *weight], fills=fills) for d, row in _row_dims(call, "self")
    ]
    return [*by_row, *_of_rows(call, "self", by_class)]


def nll_loss_backward(call: Call) -> list[Strategy]:
    """nll_loss_backward: by rows; the total weight is the global batch's. By class but for a mean: see `nll_loss`."""
    if len(call.meta("self").shape) == 1:
        return []
    has_rows = bool(call.meta("grad_output").shape)
    weight = [None] if call.maybe("weight") else []
    fill = float(call.integer("ignore_index"))
    fills = (None, None, fill, *weight, None)
    by_row = [
        strategy([d], [row if has_rows else None, d, row, *weight, None], fills=fills)
        for d, row in _row_dims(call, "self")
    ]
    by_class = strategy([1], [None, 1, None, *weight, None], lowering=Lowering.OFFSET)
    has_class = call.integer("reduction") in (0, 2)
    return [*by_row, *(_of_rows(call, "self", by_class) if has_class else []), linear(call, "grad_output")]


def _row_dims(call: Call, scores: str) -> list[tuple[int, int]]:
    """Of each dim of rows, its place in the scores, whose dim 1 are the classes, and in the labels."""
    return [(d, d - (d > 1)) for d in range(len(call.meta(scores).shape)) if d != 1]


def _of_rows(call: Call, scores: str, by_class: Strategy) -> list[Strategy]:
    """The strategy by class, where there is a dim of rows: a single row of classes has none."""
    return [by_class] if len(call.meta(scores).shape) in (2, 4) else []


def histogram(call: Call) -> list[Strategy]:
    """histc: a partial sum over every dim, where the bins do not depend on the elements."""
    low, high = (float(call.operands[name]) for name in ("min", "max"))  # type: ignore[arg-type]
    if low == high:
        return []
    return [strategy([P], [d], fills=(high + 1,)) for d in range(len(call.inputs[0].shape))]


_OTHER_DIMS = (
    "var.correction", "var.dim", "var_mean.correction", "var_mean.dim", "std.correction", "std.dim", "prod.dim_int",
    "std_mean.correction", "std_mean.dim",
    "argmax.default", "argmin.default", "max.dim", "min.dim", "any.dim", "any.dims", "all.dim", "all.dims",
    "cumprod.default", "logcumsumexp.default", "topk.default", "sort.default", "sort.stable",
    "linalg_vector_norm.default", "norm.ScalarOpt_dim", "median.dim", "kthvalue.default", "argsort.default",
)  # fmt: skip
_WHOLE = (
    "var.default", "std.default", "prod.default", "any.default", "all.default", "median.default",
)  # fmt: skip


def cumsum(call: Call) -> list[Strategy]:
    """cumsum: the other dims, partial sums; along the dim, from either end, where a plan asks for it."""
    shape = call.inputs[0].shape
    if not shape:
        return linear_other_dims(call)
    along = dim(call.integer("dim"), len(shape))
    ends = (Shard(along), Shard(along, (-shape[along],)))
    return [*linear_other_dims(call), *(_along(call, end, end) for end in ends)]


def flip(call: Call) -> list[Strategy]:
    """flip: the dims that are not flipped; where a plan asks for it, the one that is: chunks are then in reverse."""
    shape, dims = call.inputs[0].shape, call.integers("dims")
    if len(dims) != 1 or not shape:
        return unflipped(call)
    along = dim(dims[0], len(shape))
    ends = (Shard(along), Shard(along, (-shape[along],)))
    return [*unflipped(call), _along(call, ends[0], ends[1]), _along(call, ends[1], ends[0])]


def _along(call: Call, source: Shard, target: Shard) -> Strategy:
    made = strategy([target], [source], lowering=Lowering.STATE)
    return replace(made, divided=(call.inputs[0].shape[source.dim],))


TABLE: dict[str, Rule] = {
    **dict.fromkeys((f"aten.{name}" for name in _OTHER_DIMS), other_dims),
    **dict.fromkeys((f"aten.{name}" for name in _WHOLE), other_dims),
    **dict.fromkeys(("aten.sum.default", "aten.sum.dim_IntList"), total),
    **dict.fromkeys(("aten.mean.default", "aten.mean.dim"), linear_other_dims),
    "aten.cumsum.default": cumsum,
    "aten.flip.default": flip,
    **dict.fromkeys(("aten.amax.default", "aten.max.default"), largest),
    **dict.fromkeys(("aten.amin.default", "aten.min.default"), smallest),
    "aten.histc.default": histogram,
    **dict.fromkeys(("aten._softmax.default", "aten._log_softmax.default"), softmax),
    "aten._safe_softmax.default": safe_softmax,
    "aten.logsumexp.default": logsumexp,
    "aten._softmax_backward_data.default": softmax_backward,
    "aten._log_softmax_backward_data.default": log_softmax_backward,
    **dict.fromkeys(("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default"), nll_loss),
    **dict.fromkeys(("aten.nll_loss_backward.default", "aten.nll_loss2d_backward.default"), nll_loss_backward),
}
