"""Every stage of the pipeline computes what the captured module computes, on four ranks, to 1e-10 in float64."""

from __future__ import annotations

import time
from functools import cache

import pytest
from stretto.dsl import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.capture.model_parameters import parameter_infos
from stretto.frontend.captured import Mode
from stretto.frontend.to_ir import to_module
from stretto.ir.equivalence import compare, random_inputs
from stretto.ir.equivalence.compare import Verdict, compare_tensors
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.ir.interpreter import Floats, run
from stretto.ir.module import Level, Module
from stretto.passes.default_pipeline import PipelineConfig, default_pipeline
from stretto.passes.manager import PassManager
from torch import Tensor

from ...end_to_end.models import MODELS, Size, plan
from ...subsets import some

SIZES = {"even": Size(), "odd": Size(vocab=41, width=13, inner=21, layers=2, seq=9)}
SECONDS = 2.0

Stages = list[tuple[str, Module]]
"""The captured module, and what each pass makes of it."""


@cache
def stages(model: str, size: str) -> tuple[Stages, dict[str, Tensor]]:
    """A model under data, tensor and sequence parallelism, and its buffers."""
    case = MODELS[model](SIZES[size])
    captured = capture(case.model, (), case.inputs, mode=Mode.TRAIN, loss_only=True)
    owners = {info.name: str(info.owner_kind) for info in parameter_infos(case.model)}
    module = to_module(captured, owners)
    actual = [("capture", Module.parse(module.text()))]

    def keep(name: str, left: Module) -> None:
        actual.append((name, Module.parse(left.text())))

    text = plan(model, "dp=2, tp=2", "shard activations tokens over tp")
    PassManager(default_pipeline(PipelineConfig(Plan.parse(text))), keep).run(module)
    return actual, dict(case.model.named_buffers())


@pytest.mark.parametrize(("model", "size"), some(("gpt", "odd"), ("gpt", "even"), ("llama", "odd")))
def test_every_stage_computes_what_was_captured(model: str, size: str) -> None:
    ((_, before), *after), buffers = stages(model, size)
    inputs = random_inputs(before, seed=7, values=buffers)
    expected = run(before, inputs, floats=Floats.FLOAT64)
    for name, module in after:
        built = run(module, inputs, floats=Floats.FLOAT64)
        actual = [compare_tensors(str(i), a, b, 1e-10) for i, (a, b) in enumerate(zip(expected, built, strict=True))]
        assert {r.verdict for r in actual} == {Verdict.EQUAL}, (name, actual)
    assert len(expected) > 10 and after[-1][1].level is Level.COMM


@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_the_ranges_of_tokens_and_labels_are_inferred_before_and_after_pipelining(model: str) -> None:
    ((_, before), *_, (_, last)), _ = stages(model, "odd")
    stated = infer_ranges(before)
    assert {(r.high, r.ignored) for r in stated.values()} == {(41, None), (41, -100)}
    assert infer_ranges(last) == stated


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('reduce = "sum"', 'reduce = "max"'),
        ("extent = 41 : i64", "extent = 42 : i64"),
        ('"aten.mul_tensor"', '"aten.add_tensor"'),
    ],
    ids=["reduction", "mask", "operation"],
)
def test_one_wrong_operation_in_the_final_module_is_found(old: str, new: str) -> None:
    ((_, before), *_, (_, last)), _ = stages("gpt", "odd")
    text = last.text()
    assert old in text
    comparison = compare(before, Module.parse(text.replace(old, new, 1)), seed=7)
    assert not comparison.is_equal and comparison.error > 1e-6


def test_a_tiny_llama_on_four_ranks_is_quick() -> None:
    (*_, (_, last)), buffers = stages("llama", "odd")
    inputs = random_inputs(last, 0, values=buffers)
    began = time.process_time()
    run(last, inputs, floats=Floats.FLOAT64)
    assert time.process_time() - began < SECONDS
