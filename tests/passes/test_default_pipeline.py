"""Which passes a plan asks for, in which phase, and with which options."""

from pathlib import Path

from stretto.dsl.plan import Plan
from stretto.passes.base import Pass
from stretto.passes.default_pipeline import PHASES, PipelineConfig, default_pipeline, phases
from stretto.passes.manager import single, step_name
from stretto.passes.pipeline_text import parse_pipeline, print_pipeline
from stretto.passes.registry import TABLE

_PIPELINE = "mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 4 }"
_PER_MICROBATCH = "mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 4  per microbatch }"


def _names(text: str) -> list[str]:
    return [step_name(step) for step in single(default_pipeline(PipelineConfig(Plan.parse(text))))]


def test_phases_stand_in_the_order_in_which_they_run() -> None:
    assert list(PHASES) == [
        "annotate",
        "normalize",
        "blocks",
        "fold",
        "chunk",
        "place",
        "partition",
        "memory",
        "pipeline",
        "overlap",
        "outline",
    ]
    config = PipelineConfig(Plan.parse(_PIPELINE))
    assert default_pipeline(config) == [step for steps in phases(config).values() for step in steps]


def test_without_a_pipeline_none_of_its_passes_runs() -> None:
    config = PipelineConfig(Plan.parse("mesh (tp=2)"))
    assert phases(config)["pipeline"] == []
    assert not {"split-counts", "put-batch-first", "cut-stages"} & set(_names("mesh (tp=2)"))


def test_only_microbatches_that_are_computed_alone_are_averaged() -> None:
    assert "average-microbatches" in _names(_PER_MICROBATCH)
    assert set(_names(_PER_MICROBATCH)) - set(_names(_PIPELINE)) == {"average-microbatches"}


def test_formats_of_the_plan_are_options_unless_floats_are_raised() -> None:
    plan = Plan.parse("mesh (dp=2)\nprecision { reduce bf16 }")
    assert "cast-gradients{reduce=bf16}" in print_pipeline(default_pipeline(PipelineConfig(plan)))
    assert "cast-gradients," in print_pipeline(default_pipeline(PipelineConfig(plan, follow_precision=False)))


def test_how_a_program_is_used_becomes_options() -> None:
    text = print_pipeline(default_pipeline(PipelineConfig(Plan.parse("mesh (dp=2)"), True, padded_inputs=("x", "y"))))
    assert "padded-inputs=x,y" in text and "propagate-placements{delay-reductions=true}" in text


def test_what_is_printed_of_a_pipeline_is_read_as_the_same_passes(tmp_path: Path) -> None:
    file = tmp_path / "a.plan"
    file.write_text(_PER_MICROBATCH)
    steps = default_pipeline(PipelineConfig(Plan.load(str(file))))
    assert parse_pipeline(print_pipeline(steps)) == list(single(steps))


def test_every_pass_of_the_default_pipeline_is_registered() -> None:
    steps = default_pipeline(PipelineConfig(Plan.parse(_PER_MICROBATCH)))
    ours = {step.name for step in steps if isinstance(step, Pass)}
    assert ours <= TABLE.keys()
