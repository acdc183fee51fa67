"""Compare a module with the mean over microbatches of another, which is captured for one microbatch.

The other module runs once for each microbatch, as a loop that accumulates gradients would call it. Of D ranks that
share the batch and M microbatches, microbatch m has the rows `x.unflatten(0, (D, M, -1))[:, m]`, and the RNG state of
forward step * M + m. Gradients and floating numbers are averaged, rows are put back to where they came from, and
anything else must be the same for every microbatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..interpreter.code import Code, Port, decode
from ..interpreter.errors import UNLIKE, InterpreterError
from ..interpreter.memory import check
from ..interpreter.padding import Padding
from ..interpreter.precision import Floats
from ..interpreter.ranks import result_name
from ..interpreter.running import run
from ..module import Module
from ..pipelined_module import microbatches
from ..placement import Shard, axes_size
from .compare import Comparison, judge_results
from .integer_ranges import IntegerRange
from .random_inputs import argument_name, inputs_of, ranges_of
from .regimes import Regime
from .rounding import rounding_of


def compare_mean(
    before: Module,
    after: Module,
    seed: int = 0,
    *,
    ranges: Mapping[str, IntegerRange] | None = None,
    tolerance: float = 1e-9,
    padding: Padding = Padding.NAN,
    max_bytes: int | None = None,
    regime: Regime = Regime.NORMAL,
) -> Comparison:
    """Compare `after`, on a random batch, with the mean of `before` over its microbatches.

    Errors: E0660 for modules that do not fit together, E0661 for an unknown range, and those of `run`.
    """
    codes = [decode(before), decode(after)]
    mean = _Mean(before, codes[0], codes[1], padding, max_bytes)
    for code in codes:
        check(code, Floats.FLOAT64, max_bytes)
    inputs = inputs_of(codes[1], seed, ranges_of(*codes) | dict(ranges or {}), {}, regime)
    expected = mean.run(inputs)
    results = run(after, inputs, floats=Floats.FLOAT64, padding=padding, max_bytes=max_bytes)
    names = [result_name(port.record, i) for i, port in enumerate(codes[1].results)]
    return judge_results(names, expected, results, lambda: rounding_of(mean.run, inputs, expected), tolerance)


def microbatch_inputs(before: Code, after: Code, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """By microbatch, the inputs of a module for one microbatch, from those of the module for all."""
    count = microbatches(after.mesh)
    after_names = [argument_name(port.record, i) for i, port in enumerate(after.arguments)]
    by_name = dict(zip(after_names, inputs, strict=True))
    names = [argument_name(port.record, i) for i, port in enumerate(before.arguments)]
    unknown = [name for name in names if name not in by_name]
    if unknown or len(before.arguments) != len(after.arguments):
        raise InterpreterError(UNLIKE, "the modules have different arguments and cannot be compared")
    pairs = [(port, by_name[name]) for port, name in zip(before.arguments, names, strict=True)]
    return [[_part(before, port, value, number, count) for port, value in pairs] for number in range(count)]


@dataclass(frozen=True)
class _Mean:
    """The module for one microbatch, as a function of whole batches."""

    module: Module
    before: Code
    after: Code
    padding: Padding
    max_bytes: int | None

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results of all microbatches, in the order of the module for all of them."""
        runs = [
            run(self.module, part, floats=Floats.FLOAT64, padding=self.padding, max_bytes=self.max_bytes)
            for part in microbatch_inputs(self.before, self.after, inputs)
        ]
        keys = [_key(port) for port in self.before.results]
        if sorted(keys) != sorted(_key(port) for port in self.after.results):
            raise InterpreterError(UNLIKE, "the modules have different results and cannot be compared")
        places = [keys.index(_key(port)) for port in self.after.results]
        return [
            self._combined(self.before.results[place], port, [results[place] for results in runs])
            for port, place in zip(self.after.results, places, strict=True)
        ]

    def _combined(self, port: Port, whole: Port, parts: Sequence[Tensor]) -> Tensor:
        """One result of all microbatches."""
        shape = self.after.global_shape(whole.type)
        is_gradient, stacked = port.record.get("kind") == "gradient", torch.stack(list(parts))
        if tuple(parts[0].shape) != shape:
            rows = _joined(parts, _data_ranks(self.before, self._rows(port)))
            return rows / len(parts) if is_gradient else rows
        if is_gradient or (not shape and parts[0].is_floating_point()):
            return stacked.mean(0)
        if not bool((stacked == stacked[0]).all()):
            name = result_name(port.record, 0)
            raise InterpreterError(UNLIKE, f'result "{name}" differs between microbatches, but has one value for all')
        return parts[0]

    def _rows(self, result: Port) -> Port:
        """The input whose rows a result has: its own, of a gradient, else the first."""
        inputs = [port for port in self.before.arguments if port.record.get("kind") == "input"]
        own = [port for port in inputs if port.record.get("name") == result.record.get("name")]
        return (own or inputs)[0]


def _part(code: Code, port: Port, value: Tensor, number: int, count: int) -> Tensor:
    """One microbatch's part of an input."""
    if port.record.get("kind") == "random":
        seed, step = value.tolist()
        return torch.tensor([seed, step * count + number])
    if tuple(value.shape) == code.global_shape(port.type):
        return value
    ranks = _data_ranks(code, port)
    return value.reshape(ranks, count, -1, *value.shape[1:])[:, number].flatten(0, 1)


def _joined(parts: Sequence[Tensor], ranks: int) -> Tensor:
    """The rows of all microbatches, each data rank's together."""
    return torch.cat([part.reshape(ranks, -1, *part.shape[1:]) for part in parts], 1).flatten(0, 1)


def _data_ranks(code: Code, port: Port) -> int:
    """The number of ranks that share the rows of an input."""
    axes = [axis for axis, placement in port.type.placement if placement == Shard(0)]
    return axes_size(code.mesh, tuple(axes))


def _key(port: Port) -> tuple[str, str, str]:
    kind, name, index = (str(port.record.get(field)) for field in ("kind", "name", "index"))
    return kind, name, index
