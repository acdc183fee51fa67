"""One operation without communication on one rank: aten by torch itself, nn by its formula, comm's local ones here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..dialects.library import register
from ..module import Level
from . import nn, random
from .errors import NO_MEANING, InterpreterError
from .grid import Grid
from .padding import Padding, chunk_of, fill_value, is_poison
from .precision import Floats

_RESHAPES = ("aten.view.default", "aten._unsafe_view.default")
_HALF_TO_FLOAT = ("aten._softmax.default", "aten._log_softmax.default")
"""Their last argument asks for float32 from 16 bits, and torch refuses it for what is float64 already."""


@dataclass(frozen=True)
class Place:
    """Where an operation is done: by which rank, for which microbatch where time is no axis of ranks."""

    rank: int
    microbatch: int | None = None


class Evaluator:
    """Computes for the ranks of a grid, in one precision and with one padding."""

    def __init__(self, grid: Grid, level: Level, floats: Floats, padding: Padding) -> None:
        self._grid = grid
        self._level = level
        self._floats = floats
        self._padding = padding
        self._local: dict[str, Callable[..., Tensor]] = {
            "comm.shard": self._shard,
            "comm.offset": self._offset,
            "comm.mask": self._mask,
            "comm.random": self._random,
        }

    def evaluate(self, name: str, at: Place, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The operation's result, or a sequence of its results. E0652 for one without a meaning; torch's own errors."""
        if nn.has_meaning(name):
            return nn.evaluate(name, args)
        if name == "nn.random":
            return random.whole(*args)
        if name.startswith("comm."):
            return self._comm(name, at, args)
        args = [self._floats.raised(a) for a in args]
        kwargs = {key: self._floats.raised(a) for key, a in kwargs.items()}
        if self._floats is Floats.FLOAT64 and name in _HALF_TO_FLOAT:
            args[2:] = [False]
        if name in _RESHAPES:
            name = "aten.reshape.default"
        found = operator(name)
        _refuse_random(name, found, args, kwargs)
        if self._padding is Padding.NAN and name in _INDEXING:
            return _indexed(name, found, args, kwargs)
        return found(*args, **kwargs)

    def _comm(self, name: str, at: Place, args: list[Any]) -> Tensor:
        """A change of placement is nothing to a global tensor; what depends on the rank means nothing to one."""
        if self._level is Level.ATEN and name == "comm.reshard":
            tensor: Tensor = args[0]
            return tensor
        if self._level is Level.ATEN or name not in self._local:
            raise InterpreterError(NO_MEANING, f'"{name}" has no meaning at level {self._level}')
        axes = _axes(name, args)
        if not self._grid.knows(axes):
            raise InterpreterError(NO_MEANING, f'"{name}" is over {axes}, which the mesh does not have')
        return self._local[name](at, *args)

    def _coordinate(self, at: Place, axes: list[str]) -> int:
        return self._grid.coordinate(at.rank, axes, at.microbatch)

    def _shard(self, at: Place, x: Tensor, axes: list[str], dim: int, chunk: int) -> Tensor:
        return chunk_of(x, dim, self._coordinate(at, axes), chunk, self._padding)

    def _offset(self, at: Place, axes: list[str], chunk: int) -> Tensor:
        return torch.tensor(self._coordinate(at, axes) * chunk, dtype=torch.int64)

    def _mask(self, at: Place, x: Tensor, axes: list[str], dim: int, chunk: int, extent: int, fill: float) -> Tensor:
        valid = min(max(extent - self._coordinate(at, axes) * chunk, 0), chunk)
        masked = x.clone()
        masked.narrow(dim, valid, x.shape[dim] - valid).fill_(fill)
        return masked

    def _random(
        self,
        at: Place,
        state: Tensor,
        number: Tensor,
        size: list[int],
        axes: list[str],
        chunks: list[int],
        below: int | None = None,
    ) -> Tensor:
        """The rank's chunks of the whole draw."""
        part = random.whole(state, number, None, size, below)
        for dim, (names, chunk) in enumerate(zip(axes, chunks, strict=True)):
            coordinate = self._coordinate(at, names.split(",")) if names else 0
            part = chunk_of(part, dim, coordinate, chunk, self._padding)
        return part


def _axes(name: str, args: list[Any]) -> list[str]:
    """The axes that a local operation is over."""
    if name == "comm.random":
        return [axis for names in args[3] if names for axis in names.split(",")]
    axes: list[str] = args[0] if name == "comm.offset" else args[1]
    return axes


@cache
def operator(name: str) -> Any:
    """Torch's operator "aten.mm.default"; E0652 where there is none."""
    namespace, base, overload = (*name.split("."), "", "")[:3]
    register(namespace)
    found = getattr(getattr(getattr(torch.ops, namespace), base, None), overload, None)
    if found is None:
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


_INDEXING = {
    "aten.embedding.default": 1,
    "aten.gather.default": 2,
    "aten.index.Tensor": 1,
    "aten._unsafe_index.Tensor": 1,
    "aten.index_select.default": 2,
    "aten.index_put.default": 1,
    "aten._unsafe_index_put.default": 1,
    "aten.embedding_dense_backward.default": 1,
    "aten.scatter.src": 2,
    "aten.scatter.value": 2,
    "aten.scatter_add.default": 2,
    "aten.nll_loss_forward.default": 1,
    "aten.nll_loss_backward.default": 2,
}
"""Operations that read or write where indices say, and which argument these are."""


def _indexed(name: str, found: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """An indexing operation where indices that come from padding point to element 0, since torch refuses theirs.

    What a lookup gives for them is padding again. (Not for several indices at once; what writes shows its operand's.)
    """
    place = _INDEXING[name]
    indices = args[place]
    if isinstance(indices, list):
        args[place] = [None if i is None else i.masked_fill(is_poison(i), 0) for i in indices]
        return found(*args, **kwargs)
    poison = is_poison(indices)
    args[place] = indices.masked_fill(poison, 0)
    result = found(*args, **kwargs)
    if name == "aten.embedding.default":
        return result.masked_fill(poison.unsqueeze(-1), fill_value(result.dtype, Padding.NAN))
    return (
        result.masked_fill(poison, fill_value(result.dtype, Padding.NAN)) if name == "aten.gather.default" else result
    )
