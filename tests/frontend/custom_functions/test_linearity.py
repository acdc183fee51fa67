"""Which backwards are linear in the gradient that they get: a pipeline may scale the gradients of those alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Mode
from torch import Tensor, nn
from torch.autograd import Function

from .functions import BODIES, Written

Rule = Callable[[Tensor, Tensor], Tensor]
NOT_LINEAR = ("clamped", "two clamped", "once differentiable, in-place", "absent gradients")
"""Of the functions in `functions.py`, those that clamp, or multiply gradients with each other, or whose in-place ops
are not followed."""


def is_linear(rule: Rule) -> bool:
    class Ruled(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return rule(gradient, *ctx.saved_tensors)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = Ruled.apply(self.linear(x))  # type: ignore[no-untyped-call]
            return result.sum()

    return capture(Model(), (torch.randn(5, 4),), {}, mode=Mode.TRAIN).nonlinear == ()


@pytest.mark.parametrize("name", BODIES)
def test_of_the_examples_only_those_that_clamp_or_multiply_gradients_are_not_linear(name: str) -> None:
    torch.manual_seed(0)
    captured = capture(Written(BODIES[name]), (torch.randn(5, 6),), {}, mode=Mode.TRAIN)
    assert (captured.nonlinear == ()) == (not name.startswith(NOT_LINEAR))


@pytest.mark.parametrize(
    "rule",
    [
        lambda g, x: g,
        lambda g, x: (g * x.exp() - g.sum(-1, keepdim=True) / 3).to(torch.float64).float(),
        lambda g, x: torch.where(x > 0, g, 0.2 * g),
        lambda g, x: torch.where(x > 0, g, 0),
        lambda g, x: g.masked_fill(x > 0, 0.0),
        lambda g, x: torch.cat([g[:2], torch.zeros_like(g[2:])], 0),
        lambda g, x: (g.t() @ x.softmax(0) @ x.t()).t(),
        lambda g, x: torch.zeros_like(g),
        lambda g, x: g.clone().mul_(x).add_(g),
    ],
)
def test_a_linear_backward_is_found_to_be_one(rule: Rule) -> None:
    assert is_linear(rule)


@pytest.mark.parametrize(
    "rule",
    [
        lambda g, x: g.clamp(-1, 1),
        lambda g, x: g.sign() * x,
        lambda g, x: g * g,
        lambda g, x: g / (g.norm() + 1),
        lambda g, x: x / (g + 1),
        lambda g, x: g + 1,
        lambda g, x: g + x,
        lambda g, x: x,
        lambda g, x: torch.where(g > 0, g, 0),
        lambda g, x: torch.where(x > 0, g, 1),
        lambda g, x: g.masked_fill(x > 0, 1.0),
        lambda g, x: torch.zeros_like(g).add_(x),
        lambda g, x: _written_through_a_view(g),
    ],
)
def test_a_backward_that_is_not_linear_is_never_taken_for_one(rule: Rule) -> None:
    assert not is_linear(rule)


def _written_through_a_view(gradient: Tensor) -> Tensor:
    result = torch.zeros_like(gradient)
    result[0].copy_(gradient[0].abs())
    return result
