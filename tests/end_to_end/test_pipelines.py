"""Every schedule, at several numbers of stages and microbatches: all is as on one device, to 1e-9 in float64.

A Llama whose head is its embedding, a model that skips stages, an encoder-decoder.
"""

from __future__ import annotations

import pytest
from stretto.frontend.captured import Mode

from ..subsets import only, some
from .staged_models import MODELS, assert_equal, compiled, step_of

MINE = """
schedule mine(stages p, microbatches m) {
  stage s {
    warmup  min(p - s, m) { F }
    steady  m - min(p - s, m) { B W F }
    drain   { B W }
  }
}
"""
"""A schedule that is written in the plan."""
NAMED = (
    "gpipe", "1f1b", "interleaved", "breadth-first", "zb-h1", "zb-h2", "zb-auto", "zb-v", "v-half", "v-min",
    "dualpipe-v", "auto",
)  # fmt: skip
SCHEDULES = (*NAMED, "mine")
NUMBERS = [(stages, microbatches) for stages in (2, 4) for microbatches in (2, 4, 7, 8)]
SHARDS = {
    "llama": 'shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp\n'
    'shard "*.{o,down}_proj" rows over tp\nshard "*.embed_tokens" vocab over tp\n',
    "skipping": 'shard "down.*" columns over tp\n',
    "translating": 'shard "*.{q,up}" columns over tp\nshard "*.{out}" rows over tp\nshard "embed" vocab over tp\n',
}


def defined(schedule: str, stages: int, microbatches: int) -> bool:
    """Whether a schedule is defined for the numbers: all but one are for any."""
    return schedule != "dualpipe-v" or microbatches >= 2 * stages


def runs(
    model: str,
    schedule: str,
    stages: int,
    microbatches: int,
    mode: Mode = Mode.TRAIN,
    *,
    mesh: str = "",
    more: str = "",
) -> None:
    """A model's program, under a pipeline, is right."""
    text = f"mesh (pp={stages}{mesh})\npipeline over pp {{ schedule {schedule}  microbatches {microbatches} }}\n"
    text += (MINE if schedule == "mine" else "") + (SHARDS[model] if "tp" in mesh else "") + more
    staged, step = step_of(model, mode)
    assert_equal(compiled(staged, step, text, mode))


SCHEDULES = [
    ("translating", "zb-h1", 2, 4), ("skipping", "zb-v", 2, 4),
    ("skipping", "gpipe", 2, 2), ("skipping", "1f1b", 4, 8), ("skipping", "interleaved", 2, 7),
    ("skipping", "breadth-first", 4, 4), ("skipping", "v-half", 4, 4), ("skipping", "dualpipe-v", 4, 8),
    ("translating", "zb-h2", 4, 4), ("skipping", "zb-auto", 4, 7), ("skipping", "v-min", 2, 8),
    ("translating", "mine", 4, 2), ("skipping", "auto", 2, 4),
]  # fmt: skip


IN_THE_ZOO = ("gpipe", "zb-h1")
"""Schedules that a row of the zoo checks in the default run."""


@pytest.mark.parametrize(
    ("model", "schedule", "stages", "microbatches"),
    only([each for each in SCHEDULES if each[1] not in IN_THE_ZOO], SCHEDULES),
)
def test_each_schedule_trains_a_model(model: str, schedule: str, stages: int, microbatches: int) -> None:
    runs(model, schedule, stages, microbatches)


@pytest.mark.parametrize(("model", "schedule"), [("skipping", "forward-only"), ("translating", "zb-v")])
def test_forwards_run_alone(model: str, schedule: str) -> None:
    runs(model, schedule, 2, 7, Mode.INFER)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "schedule", "mesh"), some(("translating", "zb-h1", ", dp=2, tp=2"), ("llama", "dualpipe-v", ", tp=2"))
)
def test_tensors_are_sharded_beside_stages(model: str, schedule: str, mesh: str) -> None:
    runs(model, schedule, 2, 4, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "microbatches"), NUMBERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", MODELS)
def test_every_schedule_trains_every_model(model: str, schedule: str, stages: int, microbatches: int) -> None:
    if not defined(schedule, stages, microbatches):
        pytest.skip("the schedule is not defined for so few microbatches")
    runs(model, schedule, stages, microbatches)


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "microbatches"), NUMBERS)
@pytest.mark.parametrize("schedule", ("forward-only", "1f1b", "interleaved", "zb-v", "mine"))
@pytest.mark.parametrize("model", MODELS)
def test_every_model_infers_in_stages(model: str, schedule: str, stages: int, microbatches: int) -> None:
    runs(model, schedule, stages, microbatches, Mode.INFER)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "precision { compute bf16  reduce fp32 }\n"], ids=["fp64", "casts"])
@pytest.mark.parametrize("mesh", [", tp=2", ", dp=2, tp=2"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", MODELS)
def test_every_schedule_trains_sharded_models(model: str, schedule: str, mesh: str, more: str) -> None:
    runs(model, schedule, 2, 4, mesh=mesh, more=more)
