"""Products by expert over the members of a group, by definition: each row by the member that has its expert."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..collectives import EXPERT_LINEAR
from . import nn
from .collectives import Option, Options
from .errors import RowsAboveBound


def expert_products(name: str, operands: Sequence[Sequence[Tensor]], options: Options) -> list[Tensor]:
    """The result of each member. Raises ValueError where one gets more rows than the bound."""
    experts = [member[-1] for member in operands]
    if name == EXPERT_LINEAR:
        weights = torch.cat([member[1] for member in operands])
        _check_bound(experts, operands[0][1].shape[0], _integer(options["bound"]))
        capacity = 0 if options["capped"] else None  # rows that were dropped give zeros
        return [_one(nn.expert_linear(member[0], weights, member[-1], None, capacity)) for member in operands]
    count = _integer(options["count"])
    _check_bound(experts, count, _integer(options["bound"]))
    a, b = (torch.cat([_rows(member[index]) for member in operands]) for index in (0, 1))
    every = torch.cat([each.flatten() for each in experts])
    whole = nn.outer_products_by_expert(a, b, every, count * len(operands))
    return [whole.narrow(0, member * count, count).clone() for member in range(len(operands))]


def _check_bound(experts: Sequence[Tensor], count: int, bound: int) -> None:
    """Each member has `count` experts, in order."""
    every = torch.cat([each.flatten() for each in experts])
    for member in range(len(experts)):
        came = int(((every >= member * count) & (every < (member + 1) * count)).sum())
        if came > bound:
            raise RowsAboveBound(f"member {member} receives {came} rows, its bound is {bound}")


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _one(results: nn.Results) -> Tensor:
    [result] = results
    assert result is not None
    return result


def _integer(value: Option) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value
