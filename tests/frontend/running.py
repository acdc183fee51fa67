"""Run captured graphs and references with a model's own tensors, and compare with the model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from stretto.frontend.captured import Capture, InputKind, OutputKind
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Random values for every floating parameter and buffer, norm scales and zero biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.1)


def graph_arguments(
    capture: Capture, model: nn.Module, tensors: Sequence[torch.Tensor], tangents: Mapping[int, torch.Tensor]
) -> list[torch.Tensor]:
    """The tensors that the captured graph takes, in its order; a tangent that is not given is 1."""
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    arguments = []
    for item in capture.inputs:
        if item.kind is InputKind.INPUT:
            arguments.append(tensors[item.index])
        elif item.kind is InputKind.TANGENT:
            arguments.append(tangents.get(item.index, torch.ones(item.shape, dtype=item.dtype)))
        elif item.kind is InputKind.CONSTANT:
            arguments.append(capture.constants[item.name])
        else:
            arguments.append(own[item.name].detach().clone())
    return arguments


def run_graph(
    capture: Capture,
    model: nn.Module,
    tensors: Sequence[torch.Tensor],
    tangents: Mapping[int, torch.Tensor] | None = None,
) -> dict[tuple[OutputKind, Any], torch.Tensor]:
    """Results of the captured graph: outputs by (kind, index), gradients and buffers by (kind, name)."""
    results = capture.graph(*graph_arguments(capture, model, tensors, tangents or {}))
    return {
        (item.kind, item.index if item.kind is OutputKind.OUTPUT else item.name): result
        for item, result in zip(capture.outputs, results, strict=True)
    }


def run_reference(
    reference: Mapping[str, Any], values: Mapping[str, torch.Tensor], tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The reference's outputs, node by node under autograd; `values` are parameters, buffers and constants by name."""
    slots: dict[int, Any] = {
        index: tensors[item["index"]] if item["kind"] == "input" else values[item["name"]]
        for index, item in enumerate(reference["inputs"])
    }
    for instruction in reference["code"]:
        result = _op(instruction["op"])(
            *_decode(instruction["args"], slots),
            **{name: _decode(value, slots) for name, value in instruction["kwargs"].items()},
        )
        results = [result] if isinstance(result, torch.Tensor) else result
        for slot, value in zip(instruction["out"], results, strict=True):
            if slot is not None:
                slots[slot] = value
        for slot in instruction["free"]:
            del slots[slot]
    return [slots[output["slot"]] for output in reference["outputs"]]


def _op(name: str) -> Any:
    namespace, op, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), op), overload)


def _decode(value: Any, slots: Mapping[int, Any]) -> Any:
    if isinstance(value, list):
        return [_decode(item, slots) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"%": slot}:
            return slots[slot]
        case {"dtype": name}:
            return getattr(torch, name)
        case {"float": text}:
            return math.nan if text == "nan" else math.inf if text == "inf" else -math.inf
    raise AssertionError(value)


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the expected tensor's largest magnitude, which must not be zero."""
    scale = expected.abs().max().item()
    assert scale > 0, "a zero tensor checks nothing"
    return (found - expected).abs().max().item() / scale
