"""Experts that take no more rows than their capacity, in a model on one device: the function that a plan makes of it.

Products by expert are found by their weights, whatever a model calls them: a matrix or a bias that is chosen for each
row, `weights[experts]`, and products of rows that are sorted by expert, of `(rows, weights, ends of groups)`. Casts and
views of a weight are the weight. A dropped row's matrix and bias are zeros, and so is its product in groups. All of it
runs above autograd, which differentiates what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..program.program import Program
from ..reading.json_fields import Fields

CAPACITY = "capacity"
"""The key of the manifest's arguments that has, by parameter, how many times the even share of rows an expert takes."""


def capacities(program: Program) -> dict[str, float]:
    """By parameter, how many times the even share of rows its experts take; empty where nothing is dropped."""
    stated = Fields(program.manifest.arguments, "manifest.arguments")
    return {
        name: float(number)
        for name, number in stated.mapping_or(CAPACITY, {}).items()
        if isinstance(number, int | float)
    }


def capped(program: Program, parameters: Mapping[str, Tensor]) -> AbstractContextManager[object]:
    """Inside, a model with these parameters computes the function that the program's plan makes of it."""
    found = capacities(program)
    return CappedExperts(parameters, found) if found else nullcontext()


class CappedExperts(TorchFunctionMode):
    """Inside, experts with these weights take `capacity` times the even share of rows, and drop those behind them."""

    def __init__(self, parameters: Mapping[str, Tensor], capacity: Mapping[str, float]) -> None:
        super().__init__()
        self._weights = [(parameters[name], number) for name, number in capacity.items() if name in parameters]
        self._capacity = {_key(weight): number for weight, number in self._weights}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = [v for v in pytree.tree_leaves((tuple(args), dict(kwargs or {}))) if isinstance(v, Tensor)]
        weight = next((v for v in operands if self._capacity_of(v) is not None), None)
        if weight is None or not isinstance(result, Tensor):
            return result
        capacity = self._capacity_of(weight)
        assert capacity is not None, "that of a weight"
        others = [v for v in operands if v is not weight]
        count = weight.shape[0]
        match others:
            case []:
                self._follow(weight, result, capacity)
            case [experts] if _is_choice(weight, experts, result):
                return _zero(result, _places_of_chosen(experts.flatten(), count).view(experts.shape), capacity, count)
            case [rows, ends] if _is_product_in_groups(weight, rows, ends, result):
                return _zero(result, _places_in_groups(len(rows), ends), capacity, count)
        return result

    def _capacity_of(self, tensor: Tensor) -> float | None:
        return self._capacity.get(_key(tensor)) if tensor.is_floating_point() else None

    def _follow(self, weight: Tensor, result: Tensor, capacity: float) -> None:
        """A cast or a copy of a weight is the weight; a view of it is found by its memory."""
        if result.numel() == weight.numel() and result.shape[:1] == weight.shape[:1]:
            self._weights.append((result, capacity))  # which keeps the memory from being given to another tensor
            self._capacity[_key(result)] = capacity


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_choice(weight: Tensor, experts: Tensor, result: Tensor) -> bool:
    is_index = experts.dtype in (torch.int64, torch.int32)
    return is_index and result.shape == (*experts.shape, *weight.shape[1:])


def _is_product_in_groups(weight: Tensor, rows: Tensor, ends: Tensor, result: Tensor) -> bool:
    fits = weight.dim() == 3 and rows.dim() == 2 and ends.shape == weight.shape[:1] and not ends.is_floating_point()
    return fits and result.shape == (rows.shape[0], weight.shape[2])


def _places_of_chosen(experts: Tensor, count: int) -> Tensor:
    """How many rows of the same expert stand before each row."""
    chosen = experts.unsqueeze(1) == torch.arange(count, device=experts.device)
    return ((chosen.cumsum(0) - 1) * chosen).sum(1)


def _places_in_groups(rows: int, ends: Tensor) -> Tensor:
    """How many rows of the same group stand before each row."""
    numbers = torch.arange(rows, device=ends.device)
    starts = torch.cat([ends.new_zeros(1), ends])
    return numbers - starts[torch.searchsorted(ends.contiguous(), numbers, right=True)]


def _zero(result: Tensor, places: Tensor, capacity: float, count: int) -> Tensor:
    """The rows that an expert takes, and zeros for the others."""
    millionths = round(capacity * 10**6)
    most = -(-millionths * places.numel() // (count * 10**6))
    kept = (places < most).view(*places.shape, *[1] * (result.dim() - places.dim()))
    return torch.where(kept, result, 0)
