"""Custom autograd functions of a reference: they run as such, with the backward that they define."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .records import Instruction
from .reference_records import CustomFunction

CUSTOM_FUNCTION = "stretto.custom_function"
"""The op that calls one. Arguments: its index among the reference's functions, then its operands."""

Run = Callable[[Sequence[Instruction], list[object]], None]
"""Runs instructions on a frame."""


def call_custom_function(function: CustomFunction, operands: Sequence[object], run: Run) -> tuple[Tensor, ...]:
    """The outputs. The first `function.inputs` operands get the gradients that its backward computes."""
    outputs: tuple[Tensor, ...] = _Applied.apply(function, run, *operands)  # type: ignore[no-untyped-call]
    return outputs


class _Applied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: CustomFunction, run: Run, *operands: object) -> tuple[Tensor, ...]:
        frame: list[object] = [*operands, *[None] * (function.slots - len(operands))]
        run(function.code, frame)
        outputs = _separate([frame[slot] for slot in function.outputs], operands)
        ctx.function, ctx.run, ctx.frame, ctx.others = function, run, frame, len(operands) - function.inputs
        fixed = [output for index, output in enumerate(outputs) if index not in function.differentiable]
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(len(function.backwards) == 1)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[object, ...]:
        function: CustomFunction = ctx.function
        others: tuple[None, ...] = (None,) * ctx.others
        tangents = [gradients[index] for index in function.differentiable]
        present = [tangent is not None for tangent in tangents]
        matching = (each for each in function.backwards if [slot is not None for slot in each.tangents] == present)
        backward = next(matching, None)
        if backward is None:
            return (None, None, *(None,) * function.inputs, *others)
        frame = list(ctx.frame)
        for slot, tangent in zip(backward.tangents, tangents, strict=True):
            if slot is not None:
                frame[slot] = tangent
        ctx.run(backward.code, frame)
        results = (None if slot is None else frame[slot] for slot in backward.gradients)
        return (None, None, *results, *others)


def _separate(results: Sequence[object], operands: Sequence[object]) -> tuple[Tensor, ...]:
    """The results; one that is an operand, or another result, as a copy."""
    seen = {id(operand) for operand in operands}
    outputs = []
    for result in results:
        assert isinstance(result, Tensor), "a function's outputs are tensors"
        outputs.append(result.clone() if id(result) in seen else result)
        seen.add(id(result))
    return tuple(outputs)
