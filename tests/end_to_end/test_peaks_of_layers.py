"""Layers that are traced, converted and rewritten once have the peak memory that each has for itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stretto.driver.compile.compile_program as compile_module
import stretto.frontend.capture.distinct_layers as distinct_layers
import torch
from stretto import Plan
from stretto.driver.compile.request import CompileRequest
from stretto.frontend.captured import Mode
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request
from stretto.frontend.to_ir import Layers, to_module
from stretto.runtime.prover import prove
from stretto.runtime.prover.types import Types

from ..passes.layers.stacks import SmallLayer, Stack
from ..subsets import some

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAN = 'mesh (dp=2, tp=2)\nshard "*.up" columns over tp\nshard "*.down" rows over tp\n'
Call = tuple[Any, tuple[Any, ...], dict[str, Any], Plan]


def stack() -> Call:
    """Four equal layers, of which three are traced."""
    model = Stack(0)
    model.layers.extend(SmallLayer(8) for _ in range(4))
    return model, (torch.zeros(4, 3, 8),), {}, Plan.parse(PLAN)


def example(target: str, plan: str) -> Call:
    """An example under a plan of the examples."""
    found = load_target(target.replace("hf:", f"hf:{EXAMPLES}/"), Request(Mode.TRAIN))
    return found.model, (), found.inputs, Plan.load(EXAMPLES / "plans" / plan)


CALLS: dict[str, Callable[[], Call]] = {
    "stack": stack,
    **{
        f"{target} {plan}": partial(example, target, plan)
        for target in (f"{EXAMPLES}/targets.py:gpt", "hf:configs/bert_tiny.json", "hf:configs/llama_tiny.json")
        for plan in ("dp.plan", "zero3.plan", "pp.plan")
    },
}


def peaks(call: Call) -> list[int]:
    """The proved peak of each stage (bytes)."""
    model, args, kwargs, plan = call
    program = compile_module.compile_program(CompileRequest.of(model, args, kwargs, plan)).program
    verdict = prove(program, types=Types.STATED)
    assert verdict.counterexample is None
    return [peak.bytes for peak in verdict.peaks]


@pytest.mark.parametrize("name", some(*CALLS))
def test_no_peak_rises_with_layers_that_are_compiled_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    once = peaks(CALLS[name]())
    monkeypatch.setattr(distinct_layers, "shortened", lambda forward, attribute: None)
    monkeypatch.setattr(
        compile_module,
        "to_module",
        lambda *args, **options: to_module(*args, **{**options, "layers": Layers.WRITTEN_OUT}),
    )
    each = peaks(CALLS[name]())
    assert len(once) == len(each) and all(map(int.__le__, once, each)), f"{once}, each layer for itself {each}"
