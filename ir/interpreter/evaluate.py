"""One operation without communication on one rank: aten by torch itself, nn by its formula, comm's local ones here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import nn
from .errors import NO_MEANING, InterpreterError
from .grid import Grid
from .padding import Padding, chunk_of, fill_value, is_poison
from .precision import Floats

_RESHAPES = ("aten.view.default", "aten._unsafe_view.default")
_HALF_TO_FLOAT = ("aten._softmax.default", "aten._log_softmax.default")
"""Their last argument asks for float32 from 16 bits, and torch refuses it for what is float64 already."""


class Evaluator:
    """Computes for the ranks of a grid, in one precision and with one padding."""

    def __init__(self, grid: Grid, floats: Floats, padding: Padding) -> None:
        self._grid = grid
        self._floats = floats
        self._padding = padding
        self._local: dict[str, Callable[..., Tensor]] = {
            "comm.shard": self._shard,
            "comm.offset": self._offset,
            "comm.mask": self._mask,
        }

    def evaluate(self, name: str, rank: int, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The operation's result, or a sequence of its results. E0652 for one without a meaning; torch's own errors."""
        if nn.has_meaning(name):
            return nn.evaluate(name, args)
        if name in self._local:
            return self._local[name](rank, *args)
        if name == "comm.reshard":
            return args[0]
        args = [self._floats.raised(a) for a in args]
        kwargs = {key: self._floats.raised(a) for key, a in kwargs.items()}
        if self._floats is Floats.FLOAT64 and name in _HALF_TO_FLOAT:
            args[2:] = [False]
        if name in _RESHAPES:
            name = "aten.reshape.default"
        found = operator(name)
        _refuse_random(name, found, args, kwargs)
        lookup = _LOOKUPS.get(name) if self._padding is Padding.NAN else None
        return lookup(*args, **kwargs) if lookup else found(*args, **kwargs)

    def _shard(self, rank: int, x: Tensor, axes: list[str], dim: int, chunk: int) -> Tensor:
        return chunk_of(x, dim, self._grid.coordinate(rank, axes), chunk, self._padding)

    def _offset(self, rank: int, axes: list[str], chunk: int) -> Tensor:
        return torch.tensor(self._grid.coordinate(rank, axes) * chunk, dtype=torch.int64)

    def _mask(self, rank: int, x: Tensor, axes: list[str], dim: int, chunk: int, extent: int, fill: float) -> Tensor:
        valid = min(max(extent - self._grid.coordinate(rank, axes) * chunk, 0), chunk)
        masked = x.clone()
        masked.narrow(dim, valid, x.shape[dim] - valid).fill_(fill)
        return masked


@cache
def operator(name: str) -> Any:
    """Torch's operator "aten.mm.default"; E0652 where there is none."""
    namespace, base, overload = (*name.split("."), "", "")[:3]
    found = getattr(getattr(getattr(torch.ops, namespace), base, None), overload, None)
    if found is None or namespace == "comm":
        raise InterpreterError(NO_MEANING, f'"{name}" has no meaning here')
    return found


def _refuse_random(name: str, found: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """E0652 for an operation that draws random numbers; one with a dropout of 0 does not."""
    if torch.Tag.nondeterministic_seeded not in found.tags:
        return
    for i, argument in enumerate(found._schema.arguments):
        if argument.name == "dropout_p":
            given = args[i] if i < len(args) else kwargs.get("dropout_p")
            if not given:
                return
    raise InterpreterError(NO_MEANING, f'"{name}" draws random numbers, so that two runs of it cannot be compared')


def _embedding(weight: Tensor, indices: Tensor, *rest: Any, **named: Any) -> Tensor:
    """A lookup of padding gives padding, where torch would refuse the index."""
    poison = is_poison(indices)
    found: Tensor = torch.ops.aten.embedding.default(weight, indices.masked_fill(poison, 0), *rest, **named)
    return found.masked_fill(poison.unsqueeze(-1), fill_value(found.dtype, Padding.NAN))


def _gather(x: Tensor, dim: int, index: Tensor, *rest: Any, **named: Any) -> Tensor:
    poison = is_poison(index)
    found: Tensor = torch.ops.aten.gather.default(x, dim, index.masked_fill(poison, 0), *rest, **named)
    return found.masked_fill(poison, fill_value(found.dtype, Padding.NAN))


_LOOKUPS: dict[str, Callable[..., Tensor]] = {
    "aten.embedding.default": _embedding,
    "aten.gather.default": _gather,
}
