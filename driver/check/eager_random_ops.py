"""Random ops of an eager model with the draws of a program.

Every op of torch that draws is given numbers by its definition and by the interpreter's generator, which shares nothing
with capture (`expand_random_ops.py`) or with the runtime's generator. Draws are numbered in execution order, which is
the order of the captured graph. What torch composes of draws, such as dropout and its scale, stays torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...ir.interpreter.random import random_words
from ...runtime.philox import RngState

_WORDS = 2.0**32
_BITS = {torch.float16: 11, torch.bfloat16: 8}
"""Random bits of a uniform number, few enough that none rounds to 1; 24 for wider dtypes."""
_LEAST_EXPONENTIAL = 2.0**-24
"""An exponential number is above 0, as models divide by it; divided by lambda."""

Arguments = Mapping[str, Any]


class ProgramDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Inside, torch's random ops draw what one forward of a program with this RNG state draws."""

    def __init__(self, state: RngState, dtype_of: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._state = state.tensor()
        self._dtype_of = dtype_of
        self._count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(func._schema.name.removeprefix("aten::"))
        if rule is None:
            return func(*args, **(kwargs or {}))
        schema = func._schema.arguments
        arguments = {argument.name: argument.default_value for argument in schema}
        arguments |= dict(zip(arguments, args, strict=False)) | dict(kwargs or {})
        drawn = rule(self, arguments)
        return arguments["self"].copy_(drawn) if func._schema.is_mutable else drawn

    def dtype(self, arguments: Arguments) -> torch.dtype:
        """The dtype of the result: as asked, else of the tensor that it is like, else torch's default."""
        like = arguments.get("self")
        default = like.dtype if isinstance(like, Tensor) else torch.get_default_dtype()
        return self._dtype_of(_asked(arguments, default))

    def words(self, shape: Sequence[int]) -> Tensor:
        """The next draw: words in [0, 2^32)."""
        self._count += 1
        return random_words(self._state, torch.tensor(self._count - 1), None, list(shape))

    def below(self, shape: Sequence[int], probability: float) -> Tensor:
        """Whether each word of the next draw is below this share of all words."""
        return self.words(shape) < round(probability * _WORDS)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """In [0, 1): the high bits of a word."""
        bits = _BITS.get(dtype, 24)
        return (self.words(shape) >> (32 - bits)).to(dtype) * 2.0**-bits

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Standard normal by Box and Muller, from two draws."""
        wide = torch.promote_types(dtype, torch.float32)
        u, v = ((self.words(shape) + 1).to(wide) * (1 / _WORDS), self.words(shape).to(wide) * (2 * math.pi / _WORDS))
        return ((u.log() * -2).sqrt() * v.cos()).to(dtype)


def _asked(arguments: Arguments, default: torch.dtype) -> torch.dtype:
    """The dtype argument; a schema's own default is a number."""
    dtype = arguments.get("dtype")
    return dtype if isinstance(dtype, torch.dtype) else default


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor), "the schema has a tensor here"
    return value


def _shape(arguments: Arguments) -> list[int]:
    like = arguments.get("self")
    return list(like.shape) if isinstance(like, Tensor) else list(arguments["size"])


def _broadcast(shapes: Sequence[Sequence[int]]) -> list[int]:
    width = max(map(len, shapes))
    padded = [[1] * (width - len(shape)) + list(shape) for shape in shapes]
    return [next((extent for extent in extents if extent != 1), 1) for extents in zip(*padded, strict=True)]


def _bernoulli(draws: ProgramDraws, arguments: Arguments) -> Tensor:
    x, p = _tensor(arguments["self"]), arguments.get("p")
    if isinstance(p, int | float):
        return draws.below(x.shape, p).to(x.dtype)
    probability = x if p is None else _tensor(p)
    wide = torch.promote_types(probability.dtype, torch.float32)
    return (draws.uniform(x.shape, wide) < probability).to(x.dtype)


def _rand(draws: ProgramDraws, arguments: Arguments) -> Tensor:
    return draws.uniform(_shape(arguments), draws.dtype(arguments))


def _randn(draws: ProgramDraws, arguments: Arguments) -> Tensor:
    return draws.normal(_shape(arguments), draws.dtype(arguments))


def _randint(draws: ProgramDraws, arguments: Arguments) -> Tensor:
    low, high = arguments.get("low", 0), arguments["high"]
    dtype = draws.dtype(arguments) if isinstance(arguments.get("self"), Tensor) else _asked(arguments, torch.int64)
    return _tensor((draws.words(_shape(arguments)) * (high - low) >> 32) + low).to(dtype)


def _randperm(draws: ProgramDraws, arguments: Arguments) -> Tensor:
    return draws.words([arguments["n"]]).sort(stable=True).indices.to(_asked(arguments, torch.int64))


def _uniform(draws: ProgramDraws, arguments: Arguments) -> Tensor:
    low, high = arguments["from"], arguments["to"]
    return _tensor(draws.uniform(_shape(arguments), _tensor(arguments["self"]).dtype) * (high - low) + low)


def _normal(draws: ProgramDraws, arguments: Arguments) -> Tensor:
    """`normal_`, or `normal` of means and deviations that are numbers or tensors."""
    mean, std = arguments["mean"], arguments["std"]
    tensors = [value for value in (arguments.get("self"), mean, std) if isinstance(value, Tensor)]
    shape = _broadcast([list(tensor.shape) for tensor in tensors]) if tensors else arguments["size"]
    dtype = tensors[0].dtype if tensors else draws.dtype(arguments)
    return _tensor(draws.normal(shape, dtype) * std + mean)


def _exponential(draws: ProgramDraws, arguments: Arguments) -> Tensor:
    x = _tensor(arguments["self"])
    wide = torch.promote_types(x.dtype, torch.float32)
    u = (draws.words(x.shape) + 1).to(wide) * (1 / _WORDS)
    return u.log().clamp(max=-_LEAST_EXPONENTIAL).div(-arguments["lambd"]).to(x.dtype)


_RULES: dict[str, Callable[[ProgramDraws, Arguments], Tensor]] = {
    "bernoulli": _bernoulli, "bernoulli_": _bernoulli, "rand": _rand, "rand_like": _rand, "randn": _randn,
    "randn_like": _randn, "randint": _randint, "randint_like": _randint, "randperm": _randperm, "uniform_": _uniform,
    "normal": _normal, "normal_": _normal, "exponential_": _exponential,
}  # fmt: skip
"""By op name without overload: the draw."""
