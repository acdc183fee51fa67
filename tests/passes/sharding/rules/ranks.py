"""Run one call on several ranks under a sharding strategy, and reassemble the global results.

Padding for which the strategy has no fill is poison: NaN, or an index out of range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from stretto.ir.placement import AxisPlacement, Reduce, Replicate, Shard, chunk_size
from stretto.ops.overloads import overload
from stretto.passes.partition.localize import localize
from stretto.passes.sharding.rules import Lowering, Strategy
from torch import Tensor

from .joint_graphs import Recorded, to_metas
from .nn_reference import OPS

Results = tuple[Tensor | None, ...]
POISON_INT = 1 << 20
_COMBINE: dict[Reduce, Callable[[Tensor, int], Tensor]] = {
    Reduce.SUM: torch.sum,
    Reduce.MAX: torch.amax,
    Reduce.MIN: torch.amin,
}


def run(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Results:
    """The results of one call."""
    function = OPS.get(op) or overload(op)
    assert function is not None, op
    result = function(*args, **kwargs)
    if isinstance(result, (list, tuple)):
        return tuple(result)
    return () if result is None else (result,)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a structure, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same structure with other tensors."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, (list, tuple)):
        return type(value)(with_tensors(item, tensors) for item in value)
    if isinstance(value, dict):
        return {name: with_tensors(item, tensors) for name, item in value.items()}
    return value


def scattered(value: Tensor, placement: AxisPlacement, parts: int, fill: float | None) -> list[Tensor]:
    """What each rank holds of `value`."""
    if isinstance(placement, Replicate):
        return [value.clone() for _ in range(parts)]
    if isinstance(placement, Shard):
        return [_chunk(value, placement.dim, parts, rank, fill) for rank in range(parts)]
    if placement.reduce == Reduce.SUM:
        others = [_random_like(value) for _ in range(parts - 1)]
        return [value - sum(others, torch.zeros_like(value)), *others]
    sign = 1 if placement.reduce == Reduce.MAX else -1
    owner = torch.arange(value.numel()).reshape(value.shape) % parts
    offsets = [sign * _random_like(value).abs() for _ in range(parts)]
    return [torch.where(owner == rank, value, value - offsets[rank]) for rank in range(parts)]


def _random_like(value: Tensor) -> Tensor:
    return torch.randn_like(value) if value.is_floating_point() else torch.randint_like(value, -9, 9)


def _chunk(value: Tensor, dim: int, parts: int, rank: int, fill: float | None) -> Tensor:
    size = chunk_size(value.shape[dim], parts)
    if fill is None:
        fill = float("nan") if value.is_floating_point() else 1 if value.dtype == torch.bool else POISON_INT
    chunk = torch.full((*value.shape[:dim], size, *value.shape[dim + 1 :]), fill).to(value.dtype)
    start, stop = min(rank * size, value.shape[dim]), min((rank + 1) * size, value.shape[dim])
    chunk.narrow(dim, 0, stop - start).copy_(value.narrow(dim, start, stop - start))
    return chunk


def gathered(parts: list[Tensor], placement: AxisPlacement, shape: torch.Size) -> list[Tensor]:
    """The whole value, once for each rank that holds it."""
    if isinstance(placement, Replicate):
        return parts
    if isinstance(placement, Shard):
        return [torch.cat(parts, placement.dim).narrow(placement.dim, 0, shape[placement.dim])]
    return [_COMBINE[placement.reduce](torch.stack(parts), 0)]


def run_on_ranks(call: Recorded, strategy: Strategy, parts: int) -> list[Results]:
    """Each rank's results of the call."""
    tensors = list(tensors_of([call.args, call.kwargs]))
    parts_of_tensors = [
        scattered(t.contiguous(), placement, parts, strategy.fill(index))
        for index, (t, placement) in enumerate(zip(tensors, strategy.inputs, strict=True))
    ]
    local_calls = []
    for rank in range(parts):
        args, kwargs = with_tensors(
            [call.args, call.kwargs], iter([parts_of_tensor[rank] for parts_of_tensor in parts_of_tensors])
        )
        local_calls.append(localize(call.op, args, kwargs, to_metas(call.outputs), strategy, parts))
    if strategy.lowering is None:
        return [run(*local) for local in local_calls]
    return LOWERINGS[call.op, strategy.lowering](local_calls)


Locals = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


def _embedding(locals_: Locals) -> list[Results]:
    results: list[Results] = []
    for rank, (_, (weight, indices, *_), _) in enumerate(locals_):
        own = indices - rank * len(weight)
        inside = (own >= 0) & (own < len(weight))
        picked = torch.ops.aten.embedding(weight, own.where(inside, 0))
        results.append((picked.where(inside[..., None], 0.0),))
    return results


def _embedding_backward(locals_: Locals) -> list[Results]:
    results: list[Results] = []
    for rank, (op, (grad, indices, size, *rest), _) in enumerate(locals_):
        own = indices - rank * size
        inside = (own >= 0) & (own < size)
        results.append(run(op, (grad.where(inside[..., None], 0.0), own.where(inside, 0), size, *rest), {}))
    return results


def _cross_entropy(locals_: Locals) -> list[Results]:
    lse = torch.stack([logits.logsumexp(-1) for _, (logits, *_), _ in locals_]).logsumexp(0)
    picked = torch.zeros_like(lse)
    for rank, (_, (logits, labels, _), _) in enumerate(locals_):
        own = labels - rank * logits.shape[1]
        inside = (own >= 0) & (own < logits.shape[1])
        picked += logits.gather(1, own.where(inside, 0)[:, None])[:, 0].where(inside, 0.0)
    _, labels, ignored = locals_[0][1]
    counted = labels != ignored
    return [((lse - picked).where(counted, 0.0).sum(), counted.sum(dtype=lse.dtype), lse) for _ in locals_]


def _cross_entropy_backward(locals_: Locals) -> list[Results]:
    results: list[Results] = []
    for rank, (_, (scale, logits, labels, lse, ignored), _) in enumerate(locals_):
        own = torch.arange(logits.shape[1]) + rank * logits.shape[1]
        hot = (own == labels[:, None]).to(logits.dtype)
        dense = (logits - lse[:, None]).exp() - hot
        results.append((dense * scale.where(labels != ignored, 0.0)[:, None],))
    return results


def _log_softmax(locals_: Locals) -> list[Results]:
    lse = torch.stack([logits.logsumexp(dim, True) for _, (logits, dim, _), _ in locals_]).logsumexp(0)
    return [(logits - lse,) for _, (logits, *_), _ in locals_]


def _softmax(locals_: Locals) -> list[Results]:
    return [(scores.exp(),) for (scores,) in _log_softmax(locals_)]  # type: ignore[union-attr]


def _softmax_backward(locals_: Locals) -> list[Results]:
    total = torch.stack([(grad * chances).sum(dim, True) for _, (grad, chances, dim, _), _ in locals_]).sum(0)
    return [(chances * (grad - total),) for _, (grad, chances, *_), _ in locals_]


def _logsumexp(locals_: Locals) -> list[Results]:
    whole = torch.stack([run(op, args, kwargs)[0] for op, args, kwargs in locals_]).logsumexp(0)  # type: ignore[misc]
    return [(whole,) for _ in locals_]


def _gather(locals_: Locals) -> list[Results]:
    results: list[Results] = []
    for rank, (_, (scores, dim, indices), _) in enumerate(locals_):
        own = indices - rank * scores.shape[dim]
        inside = (own >= 0) & (own < scores.shape[dim])
        results.append((scores.gather(dim, own.where(inside, 0)).where(inside, 0.0),))
    return results


def _scatter_add(locals_: Locals) -> list[Results]:
    results: list[Results] = []
    for rank, (_, (base, dim, indices, source), _) in enumerate(locals_):
        own = indices - rank * base.shape[dim]
        inside = (own >= 0) & (own < base.shape[dim])
        results.append((base.scatter_add(dim, own.where(inside, 0), source.where(inside, 0.0)),))
    return results


def _image_loss(locals_: Locals) -> list[Results]:
    """nll_loss2d: as nll_loss of rows, with the classes in the last dim."""
    return _nll_loss([(op, (scores.movedim(1, -1), *rest), kwargs) for op, (scores, *rest), kwargs in locals_])


def _image_loss_backward(locals_: Locals) -> list[Results]:
    moved = [(op, (grad, scores.movedim(1, -1), *rest), kwargs) for op, (grad, scores, *rest), kwargs in locals_]
    return [(gradient.movedim(-1, 1),) for (gradient,) in _nll_loss_backward(moved)]  # type: ignore[union-attr]


def _log_softmax_backward(locals_: Locals) -> list[Results]:
    total = torch.stack([grad.sum(dim, True) for _, (grad, _, dim, _), _ in locals_]).sum(0)
    return [(grad - scores.exp() * total,) for _, (grad, scores, *_), _ in locals_]


def _row_loss(locals_: Locals) -> list[Results]:
    """nn.nll_loss: nll_loss of each row, of any number of dims."""
    with_reduction = [(op, (*args[:3], 0, args[3]), kwargs) for op, args, kwargs in locals_]
    return [(losses,) for losses, _ in _nll_loss(with_reduction)]


def _row_loss_backward(locals_: Locals) -> list[Results]:
    return _nll_loss_backward([(op, (*args[:4], 0, args[4], None), kwargs) for op, args, kwargs in locals_])


def _nll_loss(locals_: Locals) -> list[Results]:
    results: list[Results] = []
    for rank, (_, (scores, labels, weight, reduction, ignored), _) in enumerate(locals_):
        losses = -(_hot(scores, labels, rank) * scores.nan_to_num(0, 0, 0)).sum(-1) * _row_weights(
            labels, weight, ignored
        )
        count = _row_weights(labels, weight, ignored).sum()
        results.append((losses.sum(), count) if reduction else (losses, torch.zeros_like(count)))
    return results


def _nll_loss_backward(locals_: Locals) -> list[Results]:
    return [
        (-_hot(scores, labels, rank) * (grad * _row_weights(labels, weight, ignored))[..., None],)
        for rank, (_, (grad, scores, labels, weight, _, ignored, _), _) in enumerate(locals_)
    ]


def _hot(scores: Tensor, labels: Tensor, rank: int) -> Tensor:
    """(..., chunk): 1 where a row's label is a class of this rank."""
    own = torch.arange(scores.shape[-1]) + rank * scores.shape[-1]
    return (own == labels[..., None]).to(scores.dtype)


def _row_weights(labels: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    """(...): the weight of each row's class, 0 where its label is ignored."""
    counted = (labels != ignored).double()
    return counted if weight is None else counted * weight[labels.where(labels != ignored, 0)]


def _attention(locals_: Locals) -> list[Results]:
    """Each rank's queries count from its offset; they are the dim before the last of the query."""
    results: list[Results] = []
    for rank, (op, args, _) in enumerate(locals_):
        query = args[0] if op == "nn.attention" else args[1]
        results.append(run(op, (*args, torch.tensor(rank * query.shape[2])), {}))
    return results


LOWERINGS: dict[tuple[str, Lowering], Callable[[Locals], list[Results]]] = {
    ("nn.attention", Lowering.OFFSET): _attention,
    ("nn.attention_backward", Lowering.OFFSET): _attention,
    ("aten.embedding.default", Lowering.OFFSET): _embedding,
    ("aten.embedding_dense_backward.default", Lowering.OFFSET): _embedding_backward,
    ("nn.cross_entropy", Lowering.SOFTMAX): _cross_entropy,
    ("nn.cross_entropy_backward", Lowering.OFFSET): _cross_entropy_backward,
    ("aten._log_softmax.default", Lowering.SOFTMAX): _log_softmax,
    ("aten._log_softmax_backward_data.default", Lowering.SOFTMAX): _log_softmax_backward,
    ("aten.nll_loss_forward.default", Lowering.OFFSET): _nll_loss,
    ("aten.nll_loss_backward.default", Lowering.OFFSET): _nll_loss_backward,
    ("aten._softmax.default", Lowering.SOFTMAX): _softmax,
    ("aten._softmax_backward_data.default", Lowering.SOFTMAX): _softmax_backward,
    ("aten.logsumexp.default", Lowering.SOFTMAX): _logsumexp,
    ("aten.gather.default", Lowering.OFFSET): _gather,
    ("aten.scatter_add.default", Lowering.OFFSET): _scatter_add,
    ("aten.nll_loss2d_forward.default", Lowering.OFFSET): _image_loss,
    ("aten.nll_loss2d_backward.default", Lowering.OFFSET): _image_loss_backward,
    ("nn.nll_loss", Lowering.OFFSET): _row_loss,
    ("nn.nll_loss_backward", Lowering.OFFSET): _row_loss_backward,
}
