"""`cast-gradients` costs the same for every gradient, however many there are."""

from __future__ import annotations

import sys
from types import FrameType

from stretto.dsl.precision import FloatFormat
from stretto.ir.module import Module
from stretto.passes.normalize.cast_gradients import CastGradients


def module(gradients: int) -> Module:
    """A module that returns as many gradients, each of a weight, computed in bf16."""
    weights = [f"%w{i}: tensor<4xf32> {{aten.argument = {_record('parameter', i)}}}" for i in range(gradients)]
    body = [
        f'%g{i} = "aten.u_to_copy_default"(%w{i}) {{dtype = bf16}} : (tensor<4xf32>) -> tensor<4xbf16>'
        for i in range(gradients)
    ]
    casts = [
        f'%h{i} = "aten.u_to_copy_default"(%g{i}) {{dtype = f32}} : (tensor<4xbf16>) -> tensor<4xf32>'
        for i in range(gradients)
    ]
    results = ", ".join(f"(tensor<4xf32> {{aten.argument = {_record('gradient', i)}}})"[1:-1] for i in range(gradients))
    returned = ", ".join(f"%h{i}" for i in range(gradients))
    types = ", ".join(["tensor<4xf32>"] * gradients)
    text = "\n".join(
        [f"func.func @main({', '.join(weights)}) -> ({results}) {{", *body, *casts, f"return {returned} : {types}", "}"]
    )
    return Module.parse(text)


def _record(kind: str, number: int) -> str:
    return f'{{kind = "{kind}", name = "w{number}"}}'


def calls(gradients: int) -> int:
    """How many functions are called to reduce so many gradients in float32."""
    given, count = module(gradients), 0

    def count_call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_call)
    try:
        report = CastGradients(reduce=FloatFormat.FP32).run(given)
    finally:
        sys.setprofile(before)
    assert report.rewritten == gradients
    return count


def test_the_work_for_a_gradient_does_not_grow_with_the_number_of_gradients() -> None:
    calls(32)  # what is done once in a process, such as decoding the record of each argument
    few, more, many = calls(8), calls(16), calls(32)
    assert many - more <= 2.1 * (more - few)
