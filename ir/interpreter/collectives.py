"""The collectives by definition: the tensors of all members of a group to the result of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from .errors import RowsAboveBound

Option = list[str] | str | int
Options = dict[str, Option]
"""The constant arguments of a collective: axes, dim, split_dim, concat_dim, reduce, shift."""

_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


def reduce_tensors(tensors: Sequence[Tensor], reduction: str) -> Tensor:
    """The elementwise sum, max or min, in the order of the tensors."""
    return reduce(_REDUCTIONS[reduction], tensors)


def all_reduce(tensors: Sequence[Tensor], reduction: str) -> list[Tensor]:
    """Every member gets the reduction."""
    return [reduce_tensors(tensors, reduction).clone() for _ in tensors]


def all_gather(tensors: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Every member gets all tensors joined along dim, in the order of the group."""
    return [torch.cat(list(tensors), dim) for _ in tensors]


def reduce_scatter(tensors: Sequence[Tensor], dim: int, reduction: str) -> list[Tensor]:
    """Member i gets part i of the reduction, split along dim into equal parts."""
    return [part.clone() for part in _parts(reduce_tensors(tensors, reduction), len(tensors), dim)]


def all_to_all(tensors: Sequence[Tensor], split_dim: int, concat_dim: int) -> list[Tensor]:
    """Member i gets part i of every tensor, split along split_dim, concatenated along concat_dim."""
    parts = [_parts(t, len(tensors), split_dim) for t in tensors]
    return [torch.cat([p[i] for p in parts], concat_dim) for i in range(len(tensors))]


def permute(tensors: Sequence[Tensor], shift: int) -> list[Tensor]:
    """Member i gets the tensor of member i - shift, modulo the size of the group."""
    return [tensors[(i - shift) % len(tensors)].clone() for i in range(len(tensors))]


def all_to_all_rows(
    tensors: Sequence[Tensor], send_counts: Sequence[Tensor], receive_counts: Sequence[Tensor], bound: int
) -> list[Tensor]:
    """Member i gets, from each member in turn, the rows that this sends it. Rows past them are NaN, or the lowest.

    Raises ValueError for counts that are negative, exceed the rows that there are or the bound, or do not fit together.
    """
    results = []
    sent = [counts.tolist() for counts in send_counts]
    for i, received in enumerate(counts.tolist() for counts in receive_counts):
        if min(*sent[i], *received) < 0:
            raise ValueError(f"member {i} has a negative count")
        if sum(sent[i]) > tensors[i].shape[0]:
            raise ValueError(f"member {i} sends {sum(sent[i])} rows and has {tensors[i].shape[0]}")
        if sum(received) > bound:
            raise RowsAboveBound(f"member {i} receives {sum(received)} rows, its bound is {bound}")
        came = []
        for j, count in enumerate(received):
            if sent[j][i] != count:
                raise ValueError(f"member {j} sends {sent[j][i]} rows to member {i}, which receives {count}")
            came.append(tensors[j].narrow(0, sum(sent[j][:i]), count))
        result = tensors[i].new_full((bound, *tensors[i].shape[1:]), _nothing(tensors[i].dtype))
        result[: sum(received)] = torch.cat(came)
        results.append(result)
    return results


def _nothing(dtype: torch.dtype) -> float | int:
    """What stands where no value is: NaN; for integers the lowest, for booleans False."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return 0 if dtype is torch.bool else torch.iinfo(dtype).min


def run_collective(kind: str, tensors: Sequence[Tensor], options: Options) -> list[Tensor]:
    """The results of the collective "comm.<kind>" in group order; ValueError if a dim cannot be split."""
    if kind == "all_reduce":
        return all_reduce(tensors, str(options["reduce"]))
    if kind == "all_gather":
        return all_gather(tensors, _int(options, "dim"))
    if kind == "reduce_scatter":
        return reduce_scatter(tensors, _int(options, "dim"), str(options["reduce"]))
    if kind == "all_to_all":
        return all_to_all(tensors, _int(options, "split_dim"), _int(options, "concat_dim"))
    if kind == "permute":
        return permute(tensors, _int(options, "shift"))
    raise ValueError(f'unknown collective "{kind}"')


def _int(options: Options, key: str) -> int:
    value = options[key]
    if not isinstance(value, int):
        raise ValueError(f'"{key}" is {value!r}, not a whole number')
    return value


def _parts(tensor: Tensor, count: int, dim: int) -> Sequence[Tensor]:
    extent = tensor.shape[dim]
    if extent % count:
        raise ValueError(f"dim {dim} has {extent} elements, which {count} ranks do not divide")
    size = extent // count
    return [tensor.narrow(dim, i * size, size) for i in range(count)]
