"""`bisect` names the pass of the real pipeline in which a fault was planted, and where that is one op, the op."""

from __future__ import annotations

import pytest
from stretto.driver.check.pass_check import CheckOptions
from stretto.driver.debug.bisect import Bisection, bisect
from stretto.frontend.captured import Mode
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.passes.default_pipeline import PipelineConfig, default_pipeline
from stretto.passes.manager import single, step_name

from .bisecting import Planting, with_fault
from .corpus import CAPTURED, Case, compiled

SQUARE = Case("gpt", "dp_tp.plan", Mode.TRAIN)
SEQUENCE = Case("gpt", "tp_sequence.plan", Mode.TRAIN)
LLAMA = Case("llama", "dp_tp.plan", Mode.INFER)

NAMED = [
    (SQUARE, "place-arguments", "doubled gradient"),
    (SQUARE, "canonicalize", "term added twice"),
    (SQUARE, "simplify-views", "causal mask left out"),
    (SQUARE, "split-means", "doubled value"),
    (SQUARE, "partition-tensors", "wrong reduction"),
    (SEQUENCE, "cse", "wrong offset of a part"),
    (LLAMA, "symbol-dce", "reduced twice"),
]
"""Case, pass, and a fault that is one operation: one with a wrong constant, or one too many."""
PLANTED = [
    (SQUARE, "raise-idioms", "gradients swapped"),
    (SQUARE, "expand-losses", "operation left out"),
    (SQUARE, "fold-layers", "parameter of another layer"),
    (SQUARE, "fold-layers", "layer left out"),
    (SQUARE, "propagate-placements", "term left out"),
    (SQUARE, "partition-tensors", "dropped reduction"),
    (SEQUENCE, "partition-tensors", "own part repeated in place of a gather"),
    (SEQUENCE, "lower-idioms", "mask left out"),
    (SEQUENCE, "hoist-collectives", "part of the next rank"),
    (LLAMA, "start-collectives", "futures exchanged"),
    (LLAMA, "start-collectives", "wait left out"),
]
"""Case, pass and a fault that shows first in what is made of it, or that no run comes to."""
QUICK = 1
"""So many of each are in the default run; all of them are marked slow."""


def bisected(case: Case, name: str, kind: str) -> tuple[Bisection, Planting]:
    """What `bisect` says of the case's whole pipeline, in which the first pass of a name plants the fault."""
    made = compiled(case)
    steps = list(single(default_pipeline(PipelineConfig(made.plan))))
    index = [step_name(step) for step in steps].index(name)
    ranges = infer_ranges(made.module(CAPTURED))
    harmed, planting = with_fault(steps, index, kind, ranges)
    result = bisect(made.module(CAPTURED), harmed, CheckOptions(ranges=ranges))
    assert len(planting.planted) == 1
    assert (result.pass_name, result.index) == (name, index)
    return result, planting


def check_op(case: Case, name: str, kind: str) -> None:
    result, planting = bisected(case, name, kind)
    [altered] = planting.planted
    [changed] = {value.owner for value in altered.changed}
    assert result.op is not None
    assert (result.op.place.function, result.op.place.text) == (altered.function, str(changed).strip())


@pytest.mark.parametrize(("case", "name", "kind"), NAMED[:QUICK], ids=str)
def test_the_pass_and_the_operation_of_a_fault_are_named(case: Case, name: str, kind: str) -> None:
    check_op(case, name, kind)


@pytest.mark.parametrize(("case", "name", "kind"), PLANTED[:QUICK], ids=str)
def test_the_pass_of_a_fault_is_named(case: Case, name: str, kind: str) -> None:
    bisected(case, name, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "kind"), NAMED[QUICK:], ids=str)
def test_every_pass_and_operation_of_a_fault_are_named(case: Case, name: str, kind: str) -> None:
    check_op(case, name, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "kind"), PLANTED[QUICK:], ids=str)
def test_every_pass_of_a_fault_is_named(case: Case, name: str, kind: str) -> None:
    bisected(case, name, kind)
