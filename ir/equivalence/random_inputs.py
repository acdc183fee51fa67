"""Random inputs for a comparison, so that a wrong result cannot look right."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from ..interpreter.code import Code, decode
from ..interpreter.errors import NO_RANGE, InterpreterError
from ..module import Module, Record
from .integer_ranges import IntegerRange, integer_ranges, merged
from .regimes import Regime

_IGNORED_SHARE = 0.15
_STEP = 3
"""Of the RNG state: not 0, so that a pass shows that derives other steps from it wrongly."""
_GAIN = 0.7
"""Standard deviation of a matrix times the root of its larger extent; keeps activations near 1."""


def infer_ranges(*modules: Module) -> dict[str, IntegerRange]:
    """By input name, the range of integers that the modules (with the same arguments) imply."""
    return ranges_of(*(decode(m) for m in modules))


def integer_arguments(module: Module) -> list[str]:
    """The names of the integer inputs."""
    code = decode(module)
    ports = enumerate(code.arguments)
    return [argument_name(port.record, i) for i, port in ports if _is_integer(port.type.dtype)]


def random_inputs(
    module: Module,
    seed: int,
    ranges: Mapping[str, IntegerRange] | None = None,
    values: Mapping[str, Tensor] | None = None,
    regime: Regime = Regime.NORMAL,
) -> list[Tensor]:
    """Random global inputs for a module, in order. Errors: E0661 for an integer input of unknown range.

    Floating inputs are normal, or near 1 and never 0; tangents are of either sign and never 1. Booleans are true with
    probability 3/4. `values` fixes inputs by name; the others are in the `regime`.
    """
    code = decode(module)
    return inputs_of(code, seed, dict(ranges_of(code)) | dict(ranges or {}), values or {}, regime)


def ranges_of(*codes: Code) -> dict[str, IntegerRange]:
    """See `infer_ranges`."""
    ranges_by_name: dict[str, IntegerRange] = {}
    for code in codes:
        ranges = integer_ranges(code).items()
        ranges_by_name = merged(
            ranges_by_name, {argument_name(code.arguments[i].record, i): range_ for i, range_ in ranges}
        )
    return ranges_by_name


def inputs_of(
    code: Code,
    seed: int,
    ranges: Mapping[str, IntegerRange],
    values: Mapping[str, Tensor],
    regime: Regime = Regime.NORMAL,
) -> list[Tensor]:
    """See `random_inputs`."""
    random = torch.Generator().manual_seed(seed)
    inputs = []
    for i, port in enumerate(code.arguments):
        record, type_ = port.record, port.type
        name, shape = argument_name(record, i), code.global_shape(type_)
        if name in values:
            inputs.append(values[name])
        elif record.get("kind") == "random":
            inputs.append(torch.tensor([seed, _STEP]))
        elif type_.dtype.is_floating_point:
            drawn = regime.applied(str(record.get("kind", "")), name, _floating(record, shape, random))
            inputs.append(drawn.to(type_.dtype))
        elif type_.dtype.is_complex:
            inputs.append(torch.randn(shape, generator=random, dtype=torch.complex128).to(type_.dtype))
        elif type_.dtype is torch.bool:
            mask = torch.rand(shape, generator=random) < 0.75
            inputs.append(regime.applied(str(record.get("kind", "")), name, mask))
        else:
            inputs.append(_integers(name, shape, type_.dtype, ranges.get(name, IntegerRange()), random))
    return inputs


def argument_name(record: Record, index: int) -> str:
    """An argument's name, "argument 3" for one without."""
    return str(record.get("name") or f"argument {index}")


def _is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype is not torch.bool


def _floating(record: Record, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    normal = torch.randn(shape, generator=random, dtype=torch.float64)
    if record.get("kind") == "input":
        return normal
    if record.get("kind") == "tangent":
        # Never 1: a backward that loses the tangent must give other gradients.
        sign = torch.where(torch.rand(shape, generator=random) < 0.5, -1.0, 1.0)
        return sign * (1.5 + torch.rand(shape, generator=random, dtype=torch.float64))
    if record.get("kind") == "parameter" and len(shape) >= 2:
        return normal * (_GAIN / sqrt(max(shape)))
    if str(record.get("name", "")).endswith("bias"):
        return normal * 0.2
    return 0.75 + 0.5 * torch.rand(shape, generator=random, dtype=torch.float64)


def _integers(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, range_: IntegerRange, random: torch.Generator
) -> Tensor:
    if range_.high is None:
        raise InterpreterError(
            NO_RANGE,
            f'the range of integer input "{name}" is unknown',
            help=f"give it with --range '{name}=LO:HI', for LO to HI - 1 (in Python with ranges or values)",
        )
    drawn = torch.randint(range_.low, range_.high, shape, generator=random, dtype=dtype)
    wanted = torch.tensor(range_.to_draw()[: drawn.numel() // 2], dtype=dtype)
    drawn.view(-1)[torch.randperm(drawn.numel(), generator=random)[: len(wanted)]] = wanted
    if range_.ignored is not None:
        share = torch.rand(shape, generator=random)
        drawn = drawn.masked_fill(
            ((share < _IGNORED_SHARE) | (share == share.max())) & (share > share.min()), range_.ignored
        )
    return drawn
