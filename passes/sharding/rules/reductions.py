"""Rules of ops that work along some dims (sums, extremes, softmax, sort): the other dims may be sharded.

A sum over a sharded dim is a partial sum, an extreme a partial extreme. A mean over a sharded dim is no row: it is a
sum and a count, and is rewritten to these before placements are chosen.
"""

from __future__ import annotations

from ....ir.placement import AxisPlacement, Partial, Reduce
from .builders import P, Rule, dim, everywhere, linear, row
from .call import Call
from .strategy import Row


def acted_dims(call: Call) -> tuple[int, ...]:
    """The dims that the op works along; all of them where it names none."""
    rank = len(call.inputs[0].shape)
    named = call.operands.get("dim")
    found = call.integers("dim") if named is not None else ()
    return tuple(sorted(dim(d, rank) for d in found)) or tuple(range(rank))


def _others(call: Call) -> list[Row]:
    """The dims that the op does not work along, moved down past the ones that it removes."""
    acted = acted_dims(call)
    removes = len(call.out().shape) < len(call.inputs[0].shape)
    free = [d for d in range(len(call.inputs[0].shape)) if d not in acted]
    return [everywhere(call, place if removes else d, d) for place, d in enumerate(free)]


def _contracted(call: Call, output: AxisPlacement) -> list[Row]:
    return [everywhere(call, output, d) for d in acted_dims(call)]


def other_dims(call: Call) -> list[Row]:
    """var, sort, topk, argmax: nothing but the other dims."""
    return _others(call)


def linear_other_dims(call: Call) -> list[Row]:
    """mean, cumsum: the other dims, and a partial sum through."""
    return [*_others(call), everywhere(call, P, P)]


def total(call: Call) -> list[Row]:
    """sum: over a sharded dim it is a partial sum."""
    return [*_others(call), *_contracted(call, P), everywhere(call, P, P)]


def _extreme(call: Call, reduce: Reduce) -> list[Row]:
    kept = [*_others(call), everywhere(call, Partial(reduce), Partial(reduce))]
    return kept + (_contracted(call, Partial(reduce)) if call.inputs[0].dtype.is_floating_point else [])


def largest(call: Call) -> list[Row]:
    """amax: over a sharded dim it is a partial max; integers, which have no infinity to pad with, are left out."""
    return _extreme(call, Reduce.MAX)


def smallest(call: Call) -> list[Row]:
    """amin: over a sharded dim it is a partial min."""
    return _extreme(call, Reduce.MIN)


def softmax(call: Call) -> list[Row]:
    """softmax and log_softmax: every dim but the normalised one."""
    return _others(call)


def softmax_backward(call: Call) -> list[Row]:
    """Backward of softmax: as forward, and linear in the gradient."""
    return [*_others(call), linear(call, "grad_output")]


def nll_loss(call: Call) -> list[Row]:
    """nll_loss_forward: the rows of a sum are partial sums; a mean, whose count is not linear, is not offered.

    Where nothing is reduced each row has its loss, and the count is zero.
    """
    if len(call.inputs[0].shape) == 1 or call.integer("reduction") not in (0, 2):
        return []
    loss = 0 if call.integer("reduction") == 0 else P
    weight = [None] if call.maybe("weight") else []
    fills = (0.0, float(call.integer("ignore_index")), *weight)
    return [row([loss, P], [0, 0, *weight], fills=fills)]


def nll_loss_backward(call: Call) -> list[Row]:
    """nll_loss_backward: each row for itself; the total weight is the whole batch's."""
    if len(call.meta("self").shape) == 1:
        return []
    each = 0 if call.meta("grad_output").shape else None
    weight = [None] if call.maybe("weight") else []
    fill = float(call.integer("ignore_index"))
    fills = (None, None, fill, *weight, None)
    return [row([0], [each, 0, 0, *weight, None], fills=fills), linear(call, "grad_output")]


_OTHER_DIMS = (
    "var.correction", "var.dim", "var_mean.correction", "var_mean.dim", "std.correction", "std.dim", "prod.dim_int",
    "std_mean.correction", "std_mean.dim",
    "argmax.default", "argmin.default", "max.dim", "min.dim", "any.dim", "any.dims", "all.dim", "all.dims",
    "logsumexp.default", "cumprod.default", "logcumsumexp.default", "topk.default", "sort.default", "sort.stable",
    "linalg_vector_norm.default", "norm.ScalarOpt_dim", "median.dim", "kthvalue.default", "argsort.default",
)  # fmt: skip
_WHOLE = (
    "var.default", "std.default", "prod.default", "any.default", "all.default", "median.default",
)  # fmt: skip

TABLE: dict[str, Rule] = {
    **dict.fromkeys((f"aten.{name}" for name in _OTHER_DIMS), other_dims),
    **dict.fromkeys((f"aten.{name}" for name in _WHOLE), other_dims),
    **dict.fromkeys(("aten.sum.default", "aten.sum.dim_IntList"), total),
    **dict.fromkeys(("aten.mean.default", "aten.mean.dim", "aten.cumsum.default"), linear_other_dims),
    **dict.fromkeys(("aten.amax.default", "aten.max.default"), largest),
    **dict.fromkeys(("aten.amin.default", "aten.min.default"), smallest),
    **dict.fromkeys(("aten._softmax.default", "aten._log_softmax.default", "aten._safe_softmax.default"), softmax),
    "aten._softmax_backward_data.default": softmax_backward,
    "aten._log_softmax_backward_data.default": softmax_backward,
    **dict.fromkeys(("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default"), nll_loss),
    **dict.fromkeys(("aten.nll_loss_backward.default", "aten.nll_loss2d_backward.default"), nll_loss_backward),
}
