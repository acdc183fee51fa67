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
from typing import Any

import pytest
import torch
from stretto.driver.check.eager_model import EagerModel
from stretto.driver.check.users_call import UsersCall
from stretto.driver.zoo.rows import ZOO
from stretto.dsl import Plan
from stretto.frontend.captured import Mode
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request
from stretto.runtime.checks.model_and_program import Key
from stretto.runtime.checks.program_check import check
from stretto.runtime.philox import RngState
from stretto.runtime.program.program import Program
from stretto.runtime.program.reference_records import Reference
from torch import Tensor

from ..models.zoo import EXAMPLES as FOLDER
from ..models.zoo import target_of
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
    choice: str = ""
    """What this is a way of: no cell has two features of the same choice."""
    excludes: frozenset[str] = frozenset()
    """Features that the model does not have, or that are refused for it."""


STAGES = frozenset({"1f1b", "zb-v", "vocabulary"})
ROUTED = 'experts "*.experts" over ep'
CAPPED = 'experts "*.experts" over ep { capacity 0.75 }'
NOT_OF_IMAGES = frozenset(
    {"split_loss", "in_sequence", "zigzag", "cp", "all_to_all", "ring", "recompute", "vocabulary"}
    | {"bidirectional", "state"}
)
OTHERS = frozenset({"fused", "experts", "ep", "capacity", "ep_folded", "ep_stages"})
"""The features that are other models."""
FEATURES: Mapping[str, Feature] = MappingProxyType(
    {
        "dp": Feature({"dp": 2}),
        "zero1": Feature({"dp": 2}, ("zero 1 over dp",), choice="zero"),
        "zero2": Feature({"dp": 2}, ("zero 2 over dp",), choice="zero"),
        "zero3": Feature({"dp": 2}, ("zero 3 over dp",), choice="zero"),
        "buckets": Feature({"dp": 2}, ("zero 3 over dp { prefetch 2  bucket 2KB }",), choice="zero"),
        "tp": Feature({"tp": 2}),
        "sequence": Feature({"tp": 2}, ("shard activations tokens over tp",)),
        "cp": Feature({"cp": 2}, ("shard inputs dim 1 over cp",), choice="attention"),
        "all_to_all": Feature(
            {"cp": 2},
            ("shard inputs dim 1 over cp", "attention over cp { method all_to_all }"),
            choice="attention",
        ),
        "ring": Feature(
            {"cp": 2}, ("shard inputs dim 1 over cp", "attention over cp { method ring }"), choice="attention"
        ),
        "zigzag": Feature(
            {"cp": 2},
            ("shard inputs dim 1 over cp", "attention over cp { method ring  layout zigzag }"),
            choice="attention",
        ),
        "bidirectional": Feature(
            {"cp": 2},
            ("shard inputs dim 1 over cp", "attention over cp { method bidirectional }"),
            choice="attention",
        ),
        "state": Feature(
            {"cp": 2},
            ("shard inputs dim 1 over cp", "attention over cp { method state }"),
            model="hybrid",
            choice="attention",
            excludes=OTHERS | {"vocabulary"},
        ),
        "split_loss": Feature(lines=("split loss into 2",)),
        "recompute": Feature(lines=('recompute "*.mlp", attention',)),
        "in_sequence": Feature(lines=("split tokens into 2 { sizes 1, 3 }",), choice="nanobatches"),
        "by_turns": Feature(lines=("split batch into 2 { order interleave }",), choice="nanobatches"),
        "1f1b": Feature({"pp": 2}, pipeline="schedule 1f1b", choice="schedule"),
        "zb-v": Feature({"pp": 2}, pipeline="schedule zb-v", choice="schedule"),
        "vocabulary": Feature({"pp": 2}),
        "bf16": Feature(lines=("precision { params fp32  compute bf16  reduce fp32 }",)),
        "fused": Feature(model="gpt2", choice="model"),
        "experts": Feature(model="mixtral", choice="model", excludes=STAGES),
        "ep": Feature({"dp": 2}, ("axes ep = dp", ROUTED), model="mixtral", choice="model", excludes=STAGES),
        "capacity": Feature({"dp": 2}, ("axes ep = dp", CAPPED), model="mixtral", choice="model", excludes=STAGES),
        "ep_folded": Feature(
            {"dp": 2, "cp": 2},
            ("shard inputs dim 1 over cp", "axes ep = dp, cp", ROUTED),
            model="mixtral",
            choice="model",
            excludes=STAGES,
        ),
        "ep_stages": Feature(
            {"pp": 2, "dp": 2},
            ("axes ep = dp", ROUTED),
            "schedule gpipe",
            model="mixtral",
            choice="model",
            excludes=STAGES,
        ),
        "images": Feature(model="unet", choice="model", excludes=NOT_OF_IMAGES),
        "spatial": Feature(
            {"sp": 2}, ('shard inputs "images", "noise" dim 2 over sp',), model="unet", excludes=NOT_OF_IMAGES | OTHERS
        ),
        "recompute_blocks": Feature(
            lines=('recompute "down.*", "up.*"',), model="unet", excludes=NOT_OF_IMAGES | OTHERS | STAGES
        ),
    }
)
PLANS = FOLDER / "plans"
EXAMPLES: Mapping[str, Plan] = {
    "mixtral": Plan.load(PLANS / "mixtral" / "tp.plan"),
    "unet": Plan.load(PLANS / "unet" / "channels.plan"),
    "hybrid": Plan.parse(
        'mesh (tp=2)\nshard "*.qkv", "*.mlp.0" columns over tp\nshard "*.out", "*.mlp.2" rows over tp'
    ),
}
"""Models of `examples/`, with the plans that say how `tp` shards them."""
Cell = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Example(Case):
    """A model of `examples/`, whose target says what its inputs may be."""

    ranges: Mapping[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """See `Case.about`."""
        return dict(self.ranges)


def meant(cell: Cell) -> bool:
    """Whether no two features of a cell say the same thing in two ways."""
    choices = [choice for name in cell if (choice := FEATURES[name].choice)]
    return len(choices) == len({*choices}) and not any(FEATURES[name].excludes & {*cell} for name in cell)


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
    lines = list(dict.fromkeys(line for feature in features for line in feature.lines))
    if "pp" in axes:
        schedule = next((feature.pipeline for feature in features if feature.pipeline), "")
        lines.append(f"pipeline over pp {{ {schedule}  microbatches 2 }}")
    if "vocabulary" in cell:
        names = '"*.wte"' if model == "gpt2" else '"*.embed_tokens", "lm_head"'
        lines.append(f"shard {names} vocab over {'pp, tp' if 'tp' in axes else 'pp'}")
    mesh = ", ".join(f"{axis}={axes[axis]}" for axis in ("pp", "dp", "cp", "sp", "tp") if axis in axes) or "dp=1"
    if model in EXAMPLES:
        sharded = EXAMPLES[model].statements if "tp" in axes else ()
        return model, "\n".join([f"mesh ({mesh})", *map(str, sharded), *lines])
    return model, plan(model, mesh, *lines)


def _eager(case: Case, _program: Program, reference: Reference, values: Mapping[Key, Tensor]) -> EagerModel:
    """The model before any capture, with these values."""
    names = {each.index: each.name for each in reference.inputs if each.kind == "input"}
    call, model = UsersCall(case.inputs, loss_only=True), deepcopy(case.model)
    return EagerModel(model, call, names, values, set(), raised=True, state_of=lambda step: RngState(0, step))


@cache
def _case(model: str) -> Case:
    if model not in EXAMPLES:
        return MODELS[model](SIZE)
    if model == "hybrid":  # of linear attention and of softmax
        row = load_target(f"{ZOO / 'lasp-2' / 'target.py'}:model", Request(mode=Mode.TRAIN))
        return Case(row.model, {name: torch.randint(0, 32, (8, 32)) for name in row.inputs}, "targets", 32)
    target = load_target(target_of(model), Request(mode=Mode.TRAIN, batch=SIZE.batch, seq=SIZE.seq))
    return Example(target.model, target.inputs, "labels", 0, target.input_ranges)


DEFAULT: Sequence[Cell] = (
    ("zero1", "tp", "recompute", "in_sequence", "1f1b", "bf16"),
    ("zero2", "tp", "all_to_all", "zb-v", "fused"),
    ("buckets", "sequence", "cp", "by_turns", "bf16"),
    ("zero3", "tp", "zb-v", "vocabulary"),
    ("zero3", "tp", "ring", "experts"),
    ("zero1", "tp", "zigzag", "split_loss", "recompute"),
    ("zero2", "recompute", "bf16", "capacity"),
    ("dp", "tp", "ring", "ep_folded"),
    ("buckets", "bf16", "images", "spatial", "recompute_blocks"),
)
"""The cells of the default run: each feature, beside as many others as there can be."""
SLOW: Sequence[Cell] = (*cells(2), *list(cells(3))[::6], *list(cells(4))[::80])
ALL: Sequence[Cell] = tuple(dict.fromkeys([*DEFAULT, *SLOW]))


@pytest.mark.parametrize("cell", only([(cell,) for cell in DEFAULT], [(cell,) for cell in ALL]), ids="+".join)
def test_features_together_are_one_device(cell: Cell) -> None:
    model, text = text_of(cell)
    torch.manual_seed(0)
    assert_report(check(compiled(_case(model), text).program, expected=partial(_eager, _case(model))))


def test_the_default_run_has_every_feature() -> None:
    of_slow_cells = {
        "ep_stages",
        "ep",  # a loss as of the first: `test_pipeline_refusals.py`; `ep_folded` is by default
        "bidirectional",
        "state",  # alone by default: `test_long_sequences.py`
    }
    assert {name for cell in DEFAULT for name in cell} | of_slow_cells == {*FEATURES}
