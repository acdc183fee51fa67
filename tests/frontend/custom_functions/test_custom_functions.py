"""Custom autograd functions keep their own backward: the graph and the reference have eager mode's gradients."""

from __future__ import annotations

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Mode, OutputKind
from stretto.runtime.program.records import Reference
from stretto.runtime.program.reference import run_reference
from stretto.runtime.program.validate_reference import validate_reference
from torch import Tensor

from ..running import run_graph
from .functions import BODIES, Written

TANGENT = 2.5


def example(name: str) -> tuple[Written, Tensor]:
    torch.manual_seed(0)
    return Written(BODIES[name]).double(), torch.randn(5, 6, dtype=torch.float64)


def eager(model: Written, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients for a tangent other than 1."""
    model.zero_grad()
    loss = model(x)
    (loss * TANGENT).backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", BODIES)
def test_the_graph_has_the_gradients_that_the_function_defines(name: str) -> None:
    model, x = example(name)
    loss, gradients = eager(model, x)
    found = run_graph(
        capture(model, (x,), {}, mode=Mode.TRAIN), model, [x], {0: torch.tensor(TANGENT, dtype=torch.float64)}
    )
    torch.testing.assert_close(found[OutputKind.OUTPUT, 0], loss, rtol=1e-12, atol=0)
    assert {key for kind, key in found if kind is OutputKind.GRADIENT} == set(gradients)
    for key, expected in gradients.items():
        torch.testing.assert_close(found[OutputKind.GRADIENT, key], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BODIES)
def test_the_reference_has_the_gradients_that_the_function_defines(name: str) -> None:
    model, x = example(name)
    loss, gradients = eager(model, x)
    captured = capture(model, (x,), {}, mode=Mode.TRAIN)
    reference = Reference.from_json(captured.reference)
    validate_reference(reference)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    values = {("parameter", name): p for name, p in parameters.items()}
    values |= {("buffer", name): b for name, b in model.named_buffers()}
    values |= {("constant", name): value for name, value in captured.constants.items()}
    [found], _ = run_reference(reference, values, [x])
    (found * TANGENT).backward()
    torch.testing.assert_close(found.detach(), loss, rtol=1e-12, atol=0)
    assert {name for name, p in parameters.items() if p.grad is not None} == set(gradients)
    for key, expected in gradients.items():
        torch.testing.assert_close(parameters[key].grad, expected, rtol=1e-10, atol=1e-12)
