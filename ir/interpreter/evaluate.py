"""Evaluate one operation without communication on one rank: aten by torch, nn by formula, local comm ops here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...ops.table import find_op
from ..module import Level
from . import nn, random
from .errors import NO_MEANING, InterpreterError
from .grid import Grid
from .padding import Padding, chunk_of, fill_value, is_poison
from .precision import Floats

_RESHAPES = ("aten.view.default", "aten._unsafe_view.default")
_HALF_TO_FLOAT = ("aten._softmax.default", "aten._log_softmax.default")
"""Operations whose last argument converts 16-bit floats to float32; torch refuses it for float64."""


@dataclass(frozen=True)
class ExecutionPoint:
    """The rank that runs an operation, and the microbatch, in a pipelined module in order."""

    rank: int
    microbatch: int | None = None


class Evaluator:
    """Evaluates operations for the ranks of a grid, with one precision and one padding."""

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

    def evaluate(self, name: str, point: ExecutionPoint, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The operation's result or results. Errors: E0652 for an undefined operation, and torch's own.

        Values have no strides in the IR, and some kernels read other elements where strides differ from those of the
        trace. So every operation gets contiguous operands, whatever made them.
        """
        args = [_contiguous(a) for a in args]
        kwargs = {key: _contiguous(a) for key, a in kwargs.items()}
        if nn.has_meaning(name):
            return nn.evaluate(name, args)
        if name == "nn.random":
            return random.random_words(*args)
        if name.startswith("comm."):
            return self._comm(name, point, args)
        args = [self._floats.raised(a) for a in args]
        kwargs = {key: self._floats.raised(a) for key, a in kwargs.items()}
        if self._floats is Floats.FLOAT64 and name in _HALF_TO_FLOAT:
            args[2:] = [False]
        if name in _RESHAPES:
            name = "aten.reshape.default"
        operation = operator(name)
        _refuse_random(name, operation, args, kwargs)
        if self._padding is Padding.NAN and name in _INDEXING:
            return _indexed(name, operation, args, kwargs)
        return operation(*args, **kwargs)

    def _comm(self, name: str, point: ExecutionPoint, args: list[Any]) -> Tensor:
        """A local comm op. At level `aten`, reshard is the identity, and the others are not defined."""
        if self._level is Level.ATEN and name == "comm.reshard":
            tensor: Tensor = args[0]
            return tensor
        if self._level is Level.ATEN or name not in self._local:
            raise InterpreterError(NO_MEANING, f'"{name}" has no meaning at level {self._level}')
        axes = _axes(name, args)
        if not self._grid.knows(axes):
            raise InterpreterError(NO_MEANING, f'"{name}" is over {axes}, but the mesh has no such axes')
        return self._local[name](point, *args)

    def _coordinate(self, point: ExecutionPoint, axes: list[str]) -> int:
        return self._grid.coordinate(point.rank, axes, point.microbatch)

    def _shard(self, point: ExecutionPoint, x: Tensor, axes: list[str], dim: int, chunk: int) -> Tensor:
        return chunk_of(x, dim, self._coordinate(point, axes), chunk, self._padding)

    def _offset(self, point: ExecutionPoint, axes: list[str], chunk: int) -> Tensor:
        return torch.tensor(self._coordinate(point, axes) * chunk, dtype=torch.int64)

    def _mask(
        self, point: ExecutionPoint, x: Tensor, axes: list[str], dim: int, chunk: int, extent: int, fill: float
    ) -> Tensor:
        valid = min(max(extent - self._coordinate(point, axes) * chunk, 0), chunk)
        masked = x.clone()
        masked.narrow(dim, valid, x.shape[dim] - valid).fill_(fill)
        return masked

    def _random(
        self,
        point: ExecutionPoint,
        state: Tensor,
        number: Tensor,
        size: list[int],
        axes: list[str],
        chunks: list[int],
        below: int | None = None,
    ) -> Tensor:
        """The rank's chunks of the random tensor."""
        part = random.random_words(state, number, None, size, below)
        for dim, (names, chunk) in enumerate(zip(axes, chunks, strict=True)):
            coordinate = self._coordinate(point, names.split(",")) if names else 0
            part = chunk_of(part, dim, coordinate, chunk, self._padding)
        return part


def _contiguous(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.contiguous()
    return [_contiguous(a) for a in argument] if isinstance(argument, list) else argument


def _axes(name: str, args: list[Any]) -> list[str]:
    """The axes of a local comm op."""
    if name == "comm.random":
        return [axis for names in args[3] if names for axis in names.split(",")]
    axes: list[str] = args[0] if name == "comm.offset" else args[1]
    return axes


@cache
def operator(name: str) -> Any:
    """The torch operator of a name such as "aten.mm.default"; E0652 if there is none that a module may call.

    A module's text may come from anyone: as a program, it calls ops of the table alone.
    """
    entry = find_op(name)
    if entry is None or entry.only_in_references:
        raise InterpreterError(
            NO_MEANING,
            f'"{name}" is not in the table of ops that modules and programs may call',
            help='for a custom op of your own, call stretto.allow_ops("NAMESPACE::NAME") first',
        )
    namespace, base, overload = (*name.split("."), "", "")[:3]
    op = getattr(getattr(getattr(torch.ops, namespace), base, None), overload, None)
    if op is None:
        raise InterpreterError(NO_MEANING, f'torch has no operator "{name}"')
    return op


def _refuse_random(name: str, operation: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """E0652 for a random operation; with a dropout of 0, an operation is not random."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return
    for i, argument in enumerate(operation._schema.arguments):
        if argument.name == "dropout_p":
            dropout = args[i] if i < len(args) else kwargs.get("dropout_p")
            if not dropout:
                return
    raise InterpreterError(NO_MEANING, f'"{name}" draws random numbers, so two runs cannot be compared')


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
"""Indexing operations, with the position of their indices argument."""


def _indexed(name: str, operation: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Run an indexing operation with 0 for indices that come from padding, which torch would refuse as out of range.

    Embedding and gather return padding for them. Other operations return the element at index 0.
    """
    position = _INDEXING[name]
    indices = args[position]
    if isinstance(indices, list):
        args[position] = [None if i is None else i.masked_fill(is_poison(i), 0) for i in indices]
        return operation(*args, **kwargs)
    poison = is_poison(indices)
    args[position] = indices.masked_fill(poison, 0)
    result = operation(*args, **kwargs)
    if name == "aten.embedding.default":
        return result.masked_fill(poison.unsqueeze(-1), fill_value(result.dtype, Padding.NAN))
    return (
        result.masked_fill(poison, fill_value(result.dtype, Padding.NAN)) if name == "aten.gather.default" else result
    )
