"""Features of plans, together: what the ranks compute is what one device computes, to 1e-9 in float64.

A cell is a set of features on one small model. Each compares outputs, all gradients, and all parameters after three
steps of AdamW with those of the eager model, before any capture; with several microbatches where there is a pipeline.
Tangents are random, and some labels are ignored. All cells of a model share a capture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import combinations
from types import MappingProxyType

import pytest
import torch
from stretto.driver.check.eager_model import EagerModel
from stretto.driver.check.users_call import UsersCall
from stretto.runtime.checks.model_and_program import Key
from stretto.runtime.checks.program_check import check
from stretto.runtime.philox import RngState
from stretto.runtime.program.program import Program
from stretto.runtime.program.reference_records import Reference
from torch import Tensor

from ..subsets import only
from .checking import assert_report, compiled
from .models import MODELS, Case, Size, plan

SIZE = Size(vocab=44, heads=4, head=4, inner=24, layers=4, batch=8, seq=8, tied=True)


@dataclass(frozen=True)
class Feature:
    """What a feature needs of a plan: axes of the mesh with their sizes, statements, and items of the pipeline."""

    axes: Mapping[str, int] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    pipeline: str = ""
    model: str = ""
    excludes: frozenset[str] = frozenset()
    """Features that say the same thing otherwise."""


ZEROS = ("zero1", "zero2", "zero3", "buckets")
SCHEDULES = ("1f1b", "zb-v")
FEATURES: Mapping[str, Feature] = MappingProxyType(
    {
        "dp": Feature({"dp": 2}),
        "zero1": Feature({"dp": 2}, ("zero 1 over dp",), excludes=frozenset(ZEROS)),
        "zero2": Feature({"dp": 2}, ("zero 2 over dp",), excludes=frozenset(ZEROS)),
        "zero3": Feature({"dp": 2}, ("zero 3 over dp",), excludes=frozenset(ZEROS)),
        "buckets": Feature({"dp": 2}, ("zero 3 over dp { prefetch 2  bucket 2KB }",), excludes=frozenset(ZEROS)),
        "tp": Feature({"tp": 2}),
        "sequence": Feature({"tp": 2}, ("shard activations tokens over tp",)),
        "cp": Feature({"cp": 2}, ("shard inputs dim 1 over cp",)),
        "1f1b": Feature({"pp": 2}, pipeline="schedule 1f1b", excludes=frozenset(SCHEDULES)),
        "zb-v": Feature({"pp": 2}, pipeline="schedule zb-v", excludes=frozenset(SCHEDULES)),
        "vocabulary": Feature({"pp": 2}),
        "bf16": Feature(lines=("precision { params fp32  compute bf16  reduce fp32 }",)),
        "fused": Feature(model="gpt2"),
    }
)
Cell = tuple[str, ...]


def meant(cell: Cell) -> bool:
    """Whether no two features of a cell say the same thing in two ways."""
    return not any(other in FEATURES[each].excludes for each, other in combinations(cell, 2))


def cells(size: int) -> Iterable[Cell]:
    """All sets of so many features that have a meaning together."""
    return filter(meant, combinations(FEATURES, size))


def text_of(cell: Cell) -> tuple[str, str]:
    """The model and the plan of a cell."""
    features = [FEATURES[name] for name in cell]
    axes: dict[str, int] = {}
    for feature in features:
        axes |= feature.axes
    model = next((feature.model for feature in features if feature.model), "llama")
    lines = [line for feature in features for line in feature.lines]
    if "pp" in axes:
        schedule = next((feature.pipeline for feature in features if feature.pipeline), "")
        lines.append(f"pipeline over pp {{ {schedule}  microbatches 2 }}")
    if "vocabulary" in cell:
        names = '"*.wte"' if model == "gpt2" else '"*.embed_tokens", "lm_head"'
        lines.append(f"shard {names} vocab over {'pp, tp' if 'tp' in axes else 'pp'}")
    mesh = ", ".join(f"{axis}={axes[axis]}" for axis in ("pp", "dp", "cp", "tp") if axis in axes) or "dp=1"
    return model, plan(model, mesh, *lines)


def _eager(case: Case, _program: Program, reference: Reference, values: Mapping[Key, Tensor]) -> EagerModel:
    """The model before any capture, with these values."""
    names = {each.index: each.name for each in reference.inputs if each.kind == "input"}
    call, model = UsersCall(case.inputs, loss_only=True), deepcopy(case.model)
    return EagerModel(model, call, names, values, set(), raised=True, state_of=lambda step: RngState(0, step))


@cache
def _case(model: str) -> Case:
    return MODELS[model](SIZE)


DEFAULT: Sequence[Cell] = (
    ("zero1", "tp", "1f1b", "bf16"),
    ("zero2", "tp", "zb-v", "fused"),
    ("buckets", "sequence", "cp", "bf16"),
    ("zero3", "tp", "zb-v", "vocabulary"),
    ("dp", "cp", "1f1b", "fused"),
)
"""The cells of the default run: each feature, beside as many others as there can be."""
QUADRUPLES = list(cells(4))[::9]
ALL: Sequence[Cell] = tuple(dict.fromkeys([*DEFAULT, *cells(2), *cells(3), *QUADRUPLES]))


@pytest.mark.parametrize("cell", only([(cell,) for cell in DEFAULT], [(cell,) for cell in ALL]), ids="+".join)
def test_features_together_are_one_device(cell: Cell) -> None:
    model, text = text_of(cell)
    torch.manual_seed(0)
    assert_report(check(compiled(_case(model), text).program, expected=partial(_eager, _case(model))))


def test_the_default_run_has_every_feature() -> None:
    assert {name for cell in DEFAULT for name in cell} == {*FEATURES}
