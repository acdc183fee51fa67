"""Faults that show in the calls of a training loop alone: planted by a reviewer who had not read the checkers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from stretto.backends.program import lower_program
from stretto.driver.model import compiled_module
from stretto.passes.partition import vocabulary
from stretto.runtime.rank import in_place_sums, translate
from stretto.runtime.rank.unreduced_gradients import UnreducedGradients

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, giving, value
from .users_models import Case

CALLS, PEAK, STEEP = Case("calls", "dp", ()), Case("peak", "up", ()), Case("steep", "words", ())


def fault(where: str, plant: Plant, case: Case = CALLS, found_by: Finder = Finder.COMPILE_CHECK) -> SourceFault:
    return SourceFault(where, plant, found_by, case)


def any_sum_of_a_sum(code: Any, arguments: Any, kept: Any) -> frozenset[int]:
    """A sum of a sum is made in place, though the first one is an output."""
    sums = {slot for each in code if each.op == in_place_sums.ADD for slot in each.writes()}
    return frozenset(
        i for i, each in enumerate(code) if each.op == in_place_sums.ADD and each.reads() and each.reads()[0] in sums
    )


def last_gradient_alone(sums: Any, output: Any, rank: int, gradient: torch.Tensor) -> None:
    sums._outputs[output.name] = output
    sums._sums.setdefault(output.name, {})[rank] = gradient


def minimum_for_maximum(right: Wrong) -> Wrong:
    return lambda self, tensor, reduce: right(self, tensor, "min" if reduce == "max" else reduce)


def filled_with_zero(right: Wrong) -> Wrong:
    def wrong(self: Any, call: Any) -> Any:
        args, kwargs = right(self, call)
        return args, {**kwargs, "fill": 0.0} if "fill" in kwargs else kwargs

    return wrong


CALL_FAULTS = {
    "a running sum that is an output is written to": fault(
        "runtime/rank/in_place_sums: in_place_adds", value(translate, "in_place_adds", any_sum_of_a_sum)
    ),
    "calls with other constants run the program of the first": fault(
        "driver/model/variants: key_of",
        giving(compiled_module, "key_of", lambda key: replace(key, structure=(key.structure[0], ""))),
    ),
    "of gradients that wait for a reduction the last one stays": fault(
        "runtime/rank/unreduced_gradients: add", value(UnreducedGradients, "add", last_gradient_alone)
    ),
    "the maximum of a sharded vocabulary is a minimum": fault(
        "passes/partition/vocabulary: all_reduced",
        around(vocabulary.Vocabulary, "all_reduced", minimum_for_maximum),
        STEEP,
    ),
    "padding below a maximum is filled with zero": fault(
        "backends/program/lower_program: _arguments",
        around(lower_program._Body, "_arguments", filled_with_zero),
        PEAK,
        Finder.VERIFY_TARGET,
    ),
}
