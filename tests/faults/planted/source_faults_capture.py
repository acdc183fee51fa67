"""Faults of capture: what the graph takes from the model and its call, and what it gives back."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from stretto.frontend import converter
from stretto.frontend.capture import assemble, call, capture, cumulative_norms, joint, traced
from stretto.frontend.graph import autocast, regions
from stretto.frontend.targets import load_target
from torch import nn

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, giving, value
from .users_models import Case

NORMS = Case("norms", "dp")
INFERENCE = Case("gpt", "dp_tp", ("--dtype", "float64", "--mode", "infer"))


def fault(where: str, plant: Plant, case: Case = NORMS, found_by: Finder = Finder.VERIFY_TARGET) -> SourceFault:
    return SourceFault(f"frontend/{where}", plant, found_by, case)


def results(change: Any) -> Plant:
    """Other results of a traced graph."""

    def changed(described: Any) -> Any:
        change(described)
        return described

    return giving(assemble, "_describe_results", changed)


def buffers_exchanged(described: Any) -> None:
    mean, var = "norm.running_mean", "norm.running_var"
    described.buffers[mean], described.buffers[var] = described.buffers[var], described.buffers[mean]


def buffer_not_written_back(described: Any) -> None:
    described.buffers.pop("norm.running_mean")


def gradients_exchanged(described: Any) -> None:
    q, k = "layers.0.q_proj.weight", "layers.0.k_proj.weight"
    described.gradients[q], described.gradients[k] = described.gradients[k], described.gradients[q]


def gradient_forgotten(described: Any) -> None:
    described.gradients.pop("down.bias")


def gradient_of_a_tied_weight_twice(described: Any) -> None:
    described.gradients["embed.weight"] *= 2


def without_alpha(right: Wrong) -> Wrong:
    return lambda call, *rest: right(
        replace(call, kwargs={k: v for k, v in call.kwargs.items() if k != "alpha"}), *rest
    )


def counted_before(right: Wrong) -> Wrong:
    """The share of a batch in a running average is 1 / (batches + 1)."""

    def wrong(norm: Any, input: torch.Tensor) -> torch.Tensor:
        norm.num_batches_tracked.add_(1)
        result: torch.Tensor = right(norm, input)
        norm.num_batches_tracked.sub_(1)
        return result

    return wrong


def same_shapes_reversed(right: Wrong) -> Wrong:
    """Inputs of one shape are passed in each other's place."""

    def wrong(self: Any, tensors: Any) -> Any:
        alike = len({(tensor.shape, tensor.dtype) for tensor in tensors}) == 1
        return right(self, tensors[::-1] if alike else tensors)

    return wrong


def stays_in_train_mode(both: tuple[nn.Module, Any]) -> tuple[nn.Module, Any]:
    model, inputs = both
    model.eval = lambda: model  # type: ignore[method-assign]
    return model, inputs


def first_in_eval_mode(both: tuple[nn.Module, Any]) -> tuple[nn.Module, Any]:
    model, inputs = both
    next(module for module in model.modules() if isinstance(module, nn.Dropout)).eval()
    return model, inputs


def always_on(right: Wrong) -> Wrong:
    return lambda dtype, enabled: right(dtype, True)


CAPTURE_FAULTS = {
    "what is computed under no_grad gets gradients": fault(
        "graph/regions: _detached", value(regions, "_detached", lambda value, place: value)
    ),
    "two buffers get each other's new value": fault("capture/assemble: _describe_results", results(buffers_exchanged)),
    "a changed buffer is not written back": SourceFault(
        "frontend/capture/assemble: _describe_results",
        results(buffer_not_written_back),
        Finder.VERIFY_TARGET,
        NORMS,
        "steps",
    ),
    "two parameters of one shape get each other's gradient": fault(
        "capture/assemble: _describe_results", results(gradients_exchanged), Case("gpt", "dp_tp")
    ),
    "a parameter silently gets no gradient": fault("capture/assemble: _describe_results", results(gradient_forgotten)),
    "the gradient of a tied weight is added to itself": fault(
        "capture/assemble: _describe_results", results(gradient_of_a_tied_weight_twice), Case("gpt", "dp_tp")
    ),
    "a tensor made in the forward becomes zeros": fault(
        "capture/joint: _hold_constants",
        giving(joint, "_hold_constants", lambda held: {name: torch.zeros_like(v) for name, v in held.items()}),
        found_by=Finder.COMPILE_CHECK,
    ),
    "an addition loses its factor": fault("converter: convert", around(converter, "build", without_alpha)),
    "a running average counts a batch too many": fault(
        "capture/cumulative_norms: _normalized", around(cumulative_norms, "_normalized", counted_before)
    ),
    "two inputs of one shape are exchanged": fault(
        "capture/call: arguments", around(call.BoundCall, "arguments", same_shapes_reversed)
    ),
    "a custom gradient is dropped": fault(
        "capture/own_gradients: own_gradients_kept",
        value(traced, "own_gradients_kept", nullcontext),
        Case("straight_through", "dp"),
    ),
    "a backward hook of a module is dropped": fault(
        "capture/own_gradients: refuse_backward_hooks",
        value(capture, "refuse_backward_hooks", lambda model: None),
        Case("hooked", "dp"),
    ),
    "layers that Python's random numbers weigh are not reported": fault(
        "capture/python_randomness: python_randomness_recorded",
        value(traced, "python_randomness_recorded", lambda model, places: nullcontext()),
        Case("skips_layers", "dp"),
        Finder.COMPILE_CHECK,
    ),
    "autocast that is switched off inside a region stays on": fault(
        "graph/autocast: enter", around(autocast, "enter", always_on), Case("half", "dp", ()), Finder.COMPILE_CHECK
    ),
    "a target for inference keeps its dropout": SourceFault(
        "frontend/targets/load_target: _load_file",
        giving(load_target, "_model_and_entries", stays_in_train_mode),
        Finder.COMPILE_CHECK,
        INFERENCE,
    ),
    "a target for training has one module in eval mode": fault(
        "targets/load_target: _load_file",
        giving(load_target, "_model_and_entries", first_in_eval_mode),
        Case("gpt", "dp_tp"),
    ),
}
