"""Calls of an op with arguments made from its schema: those of a few guesses that torch takes.

All extents are 4, so that shapes fit each other; floats lie between 0 and 1, where most functions are defined; integers
are below 4, so that they are indices of any dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from stretto.runtime.program.ops import torch_op
from torch import Tensor

from .layouts import FAILURES, OpCall

_DTYPES = (torch.float64, torch.int64, torch.bool, torch.complex128)
_SHAPES: tuple[tuple[int, ...], ...] = ((4, 4), (4, 4, 4), (4,), (4, 4, 4, 4), (), (4, 4, 4, 4, 4))
_INDEX_NAMES = ("index", "indices", "target", "mask", "condition", "repeats", "tensor_indices_or_sections")
_ENOUGH = 3


class _NoGuess(Exception):
    """The schema has an argument for which nothing is guessed."""


def schema_calls(name: str) -> Iterator[OpCall]:
    """Up to three calls that run, of different shapes."""
    op = torch_op(name)
    found = 0
    shapes = set()
    for dtype, shape, number, length, index in product(
        _DTYPES, _SHAPES, (1, 2, 0), (1, 2, 3), (torch.int64, torch.bool)
    ):
        if shape in shapes:
            continue
        generator = torch.Generator().manual_seed(found)
        try:
            call = _guess(name, op.overload._schema, _Guess(dtype, shape, number, length, index, generator))
            op.overload(*call.args, **call.kwargs)
        except (_NoGuess, *FAILURES):
            continue
        yield call
        shapes.add(shape)
        found += 1
        if found == _ENOUGH:
            return


class _Guess:
    def __init__(
        self,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        number: int,
        length: int,
        index: torch.dtype,
        generator: torch.Generator,
    ) -> None:
        self.dtype, self.shape, self.number, self.length, self.index = dtype, shape, number, length, index
        self.generator = generator

    def tensor(self, name: str) -> Tensor:
        dtype = self.index if name in _INDEX_NAMES else self.dtype
        if dtype == torch.bool:
            return torch.randint(0, 2, self.shape, generator=self.generator).bool()
        if dtype == torch.int64:
            return torch.randint(0, 4, self.shape, generator=self.generator)
        return torch.rand(self.shape, dtype=dtype, generator=self.generator) * 0.8 + 0.1

    def value(self, name: str, type_: str) -> Any:
        match type_.removeprefix("Optional[").removesuffix("]") if type_.startswith("Optional[") else type_:
            case "Tensor":
                return self.tensor(name)
            case "List[Tensor]":
                return [self.tensor(name), self.tensor(name)]
            case "List[Optional[Tensor]]":
                return [torch.randint(0, 4, (4,), generator=self.generator)]
            case "int" if name == "dim":
                return 0
            case "int":
                return self.number
            case "number":
                return 0.5 if self.dtype.is_floating_point else 2
            case "float":
                return 0.5
            case "bool":
                return False
            case "List[int]" if name in ("size", "shape", "reps", "sizes", "split_sizes", "repeats"):
                return [4] * max(1, len(self.shape))
            case "List[int]" if name in ("dims", "source", "destination", "dim"):
                return list(range(min(self.length, len(self.shape) or 1)))
            case "List[int]":
                return [self.number] * self.length
            case "List[float]":
                return [0.5] * self.length
            case "str" if name == "reduce":
                return "sum"
            case "str" if name == "equation":
                return "...i,...i->...i"
            case "str":
                return "reflect"
            case "Device" | "Layout" | "ScalarType":
                return None
        raise _NoGuess


def _guess(name: str, schema: Any, guess: _Guess) -> OpCall:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in schema.arguments:
        type_ = str(argument.type)
        is_tensor = "Tensor" in type_
        if argument.has_default_value() and not is_tensor:
            if argument.kwarg_only:
                continue
            args.append(argument.default_value)
            continue
        if argument.kwarg_only:
            if not argument.has_default_value():
                kwargs[argument.name] = guess.value(argument.name, type_)
            continue
        args.append(None if argument.has_default_value() else guess.value(argument.name, type_))
    return OpCall(name, args, kwargs)
