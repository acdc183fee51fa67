"""Custom autograd functions keep their own backward: the graph and the reference have eager mode's gradients."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode, OutputKind, origin_of
from stretto.runtime.checks.program_check import check
from stretto.runtime.program.reference import run_reference
from stretto.runtime.program.reference_records import Reference
from stretto.runtime.program.validate_reference import validate_reference
from torch import Tensor

from ...end_to_end.checking import assert_report, compiled_model
from ..running import run_graph
from . import functions
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
def test_graph_and_reference_have_the_gradients_that_the_function_defines(name: str) -> None:
    model, x = example(name)
    loss, gradients = eager(model, x)
    captured = capture(model, (x,), {}, mode=Mode.TRAIN)
    found = run_graph(captured, model, [x], {0: torch.tensor(TANGENT, dtype=torch.float64)})
    of_graph = {key: value for (kind, key), value in found.items() if kind is OutputKind.GRADIENT}
    assert_as_eager(found[OutputKind.OUTPUT, 0], of_graph, loss, gradients)
    assert_as_eager(*of_reference(captured, model, x), loss, gradients)


def of_reference(captured: Capture, model: Written, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients of the reference under autograd."""
    reference = Reference.from_json(captured.reference)
    validate_reference(reference)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    values = {("parameter", name): p for name, p in parameters.items()}
    values |= {("buffer", name): b for name, b in model.named_buffers()}
    values |= {("constant", name): value for name, value in captured.constants.items()}
    [loss], _ = run_reference(reference, values, [x])
    (loss * TANGENT).backward()
    return loss.detach(), {name: p.grad for name, p in parameters.items() if p.grad is not None}


def assert_as_eager(
    loss: Tensor, gradients: dict[str, Tensor], expected_loss: Tensor, expected: dict[str, Tensor]
) -> None:
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)


def test_nodes_of_a_backward_have_its_lines_and_the_module_of_its_forward() -> None:
    model, x = example("BLOOM's GELU")
    backwards = [origin_of(node) for node in capture(model, (x,), {}, mode=Mode.TRAIN).graph.graph.nodes]
    own = [origin for origin in backwards if origin.backward and origin.file == functions.__file__]
    lines, start = inspect.getsourcelines(functions.BloomGelu.backward)
    inside = [origin for origin in own if start <= origin.line < start + len(lines)]
    assert len(inside) > 8 and {origin.module_path for origin in inside} == {""}
    assert not any(origin.backward is False and start <= origin.line < start + len(lines) for origin in backwards)


class Random(torch.autograd.Function):
    """A dropout with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mask = (torch.rand_like(x) < 0.5).to(x.dtype)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0] * 3 + 1


def test_the_draws_of_a_function_are_those_of_the_reference() -> None:
    torch.manual_seed(0)
    model, x = Written(lambda model, x: Random.apply(x)).double(), torch.randn(4, 6, dtype=torch.float64)
    captured = capture(model, (x,), {}, mode=Mode.TRAIN)
    reference = Reference.from_json(captured.reference)
    validate_reference(reference)
    assert reference.functions[0].inputs == 1 and reference.functions[0].operands == 2
    report = check(compiled_model(model, {"x": x}, "mesh (dp=2)").program)
    assert_report(report)


@pytest.mark.parametrize("casts", [None, torch.float32])
def test_a_function_follows_autocast_as_in_eager_mode(casts: torch.dtype | None) -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cpu", cast_inputs=casts)
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        @torch.amp.custom_bwd(device_type="cpu")
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            return 2 * (gradient @ weight.t()), x.t() @ gradient

    def body(model: Written, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result: Tensor = Product.apply(x, model.square)  # type: ignore[no-untyped-call]
        return result.float()

    torch.manual_seed(0)
    model, x = Written(body), torch.randn(5, 6)
    loss, gradients = eager(model, x)
    found = run_graph(capture(model, (x,), {}, mode=Mode.TRAIN), model, [x], {0: torch.tensor(TANGENT)})
    torch.testing.assert_close(found[OutputKind.OUTPUT, 0], loss, rtol=0, atol=0)
    for key, expected in gradients.items():
        torch.testing.assert_close(found[OutputKind.GRADIENT, key], expected, rtol=1e-6, atol=1e-7)
