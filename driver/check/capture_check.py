"""Check capture: the captured module computes what the model does in eager PyTorch, before any rewriting.

The model runs as its user calls it, in float64, with the draws that the module makes. The module runs in the
interpreter, on the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.captured import Capture
from ...frontend.targets.load_target import load_target
from ...frontend.targets.target import Request
from ...ir.equivalence.compare import compare_results
from ...ir.equivalence.random_inputs import argument_name, random_inputs
from ...ir.interpreter import Floats, run
from ...ir.interpreter.code import Port, decode
from ...ir.module import Module
from ...runtime.checks.model_and_program import Key, backward
from ...runtime.philox import RngState
from .eager_model import EagerModel
from .pass_check import CheckOptions, PassVerdict, verdict_of, with_stated_ranges
from .second_load import load_again, refuse_other_modes
from .users_call import UsersCall
from .verify_passes import CAPTURE


@dataclass(frozen=True)
class CapturedModule:
    """A module as captured from a target for a plan, with the capture that it was made from."""

    module: Module
    capture: Capture
    plan: Plan
    target: str
    request: Request
    loss_only: bool
    """Whether the module returns the loss alone."""


def check_capture(captured: CapturedModule, options: CheckOptions) -> PassVerdict:
    """The verdict on the captured module; not checked where the target has no weights.

    Errors: E0655 for the memory cap, E0661 for an unknown range, E0667 for a model that is loaded in another mode than
    asked for, and those of loading and calling it.
    """
    target = load_target(captured.target, captured.request)
    if not target.weights_are_real:
        return PassVerdict(CAPTURE, None, message=("the target has shapes and no weights",))
    refuse_other_modes(captured.target, target, captured.request, load_again(captured.target, captured.request))
    module = captured.module
    ports = decode(module).arguments
    ranges = with_stated_ranges(module, options.ranges)
    inputs = random_inputs(module, options.seed, ranges, _fixed_values(captured, target.model))
    found = run(module, inputs, floats=Floats.FLOAT64, max_bytes=options.memory_cap_bytes)
    expected = _eager_results(captured, target.model, target.inputs, inputs, ports)
    return verdict_of(
        CAPTURE,
        compare_results(module, inputs, found, expected, options.tolerance, max_bytes=options.memory_cap_bytes),
    )


def _fixed_values(captured: CapturedModule, model: torch.nn.Module) -> dict[str, Tensor]:
    """By argument: the graph's own constants, and integer buffers, whose values the graph may have been made for."""
    buffers = {name: value for name, value in model.named_buffers() if not value.dtype.is_floating_point}
    held = {**{name: value.detach().clone() for name, value in buffers.items()}, **captured.capture.constants}
    floats = Floats.FLOAT64
    return {name: value.to(floats.of(value.dtype)) for name, value in held.items()}


def _eager_results(
    captured: CapturedModule,
    model: torch.nn.Module,
    example: Mapping[str, Any],
    inputs: Sequence[Tensor],
    ports: Sequence[Port],
) -> list[Tensor]:
    """What eager PyTorch gives, in the order of the module's results."""
    call = UsersCall(example, captured.loss_only)
    values_by_key = {_key(port, index): value for index, (port, value) in enumerate(zip(ports, inputs, strict=True))}
    results = decode(captured.module).results
    buffers = {str(port.record["name"]) for port in results if port.record.get("kind") == "buffer"}
    state = next(
        (value for (kind, _), value in values_by_key.items() if kind == "random"), torch.zeros(2, dtype=torch.int64)
    )
    seed, step = (int(number) for number in state)
    names: dict[int | None, str] = {
        int(p.record["index"]): str(p.record["name"]) for p in ports if p.record.get("kind") == "input"
    }
    eager = EagerModel(
        model, call, names, values_by_key, buffers, raised=True, state_of=lambda forwards: RngState(seed, step)
    )
    user_inputs = _user_inputs(ports, inputs)
    outputs = eager.forward(user_inputs)
    tangents = {
        int(port.record["index"]): value
        for port, value in zip(ports, inputs, strict=True)
        if port.record.get("kind") == "tangent"
    }
    if tangents:
        backward(outputs, tangents)
    gradients = eager.gradients() | _input_gradients(ports, user_inputs)
    _refuse_lost_gradients(gradients, eager.undeclared_gradients(), results)
    return [_result(port, outputs, gradients, eager.changed, values_by_key) for port in results]


def _refuse_lost_gradients(
    gradients: Mapping[str, Tensor], of_other_inputs: Sequence[str], results: Sequence[Port]
) -> None:
    """Raise StrettoError E0660 for a gradient that eager PyTorch gives and the captured module does not."""
    given = {str(port.record.get("name")) for port in results if port.record.get("kind") == "gradient"}
    lost = [*of_other_inputs, *(name for name, value in gradients.items() if name not in given and bool(value.any()))]
    if lost:
        raise StrettoError(
            "E0660",
            f'the captured module gives no gradient of "{lost[0]}", and eager PyTorch does',
            help="this is a fault of the capture: please report it with the model",
        )


def _key(port: Port, index: int) -> Key:
    return str(port.record.get("kind", "")), argument_name(port.record, index)


def _user_inputs(ports: Sequence[Port], inputs: Sequence[Tensor]) -> dict[int | None, Tensor]:
    """The inputs of the call by index; those that require a gradient are leaves of their own."""
    by_index: dict[int | None, Tensor] = {}
    for port, value in zip(ports, inputs, strict=True):
        if port.record.get("kind") == "input":
            wants = bool(port.record.get("requires_grad", False))
            by_index[int(port.record["index"])] = value.detach().clone().requires_grad_(wants)
    return by_index


def _input_gradients(ports: Sequence[Port], user_inputs: Mapping[int | None, Tensor]) -> dict[str, Tensor]:
    named = {
        str(p.record["name"]): user_inputs[int(p.record["index"])] for p in ports if p.record.get("kind") == "input"
    }
    return {name: value.grad for name, value in named.items() if value.grad is not None}


def _result(
    port: Port,
    outputs: Sequence[Tensor],
    gradients: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    values_by_key: Mapping[Key, Tensor],
) -> Tensor:
    """The result of a record; zeros for a gradient that eager PyTorch does not give."""
    kind, name = str(port.record["kind"]), str(port.record.get("name", ""))
    if kind == "output":
        return outputs[int(port.record["index"])].detach()
    if kind == "buffer":
        return buffers[name]
    source = next((value for (k, n), value in values_by_key.items() if n == name and k in ("parameter", "input")), None)
    if source is None:
        raise StrettoError("E0660", f'the captured module gives a gradient of "{name}", which the model does not have')
    return gradients.get(name, torch.zeros_like(source))
