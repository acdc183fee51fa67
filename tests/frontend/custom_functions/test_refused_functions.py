"""A custom autograd function that cannot be captured is refused at its own line, with a way out."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import CaptureError, Mode, OutputKind
from torch import Tensor, nn
from torch.autograd import Function

from .functions import Recomputes, Tripled


class Identity(Function):
    """Subclasses have the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


class Branches(Identity):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if gradient.norm() > 1:
            return gradient / gradient.norm()
        return gradient


class Masks(Identity):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[gradient > 0].sum().expand_as(gradient)


class Forgets(Identity):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.factor


class OneTooMany(Identity):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient


class OtherShape(Identity):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.sum(0)


class ChangesGiven(Identity):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.mul_(2)


class Dirty(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Model(nn.Module):
    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function
        self.square = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        more = (self.square,) if self.function is Recomputes else ()
        result: Tensor = self.function.apply(self.linear(x), *more)  # type: ignore[no-untyped-call]
        return result.sum()


def refused(model: nn.Module) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        capture(model, (torch.randn(5, 4),), {}, mode=Mode.TRAIN)
    assert caught.value.__cause__ is None and caught.value.help
    return caught.value


@pytest.mark.parametrize(
    ("function", "code", "says", "line"),
    [
        (Branches, "E0220", 'the backward of "Branches" branches on', "if gradient.norm() > 1"),
        (Masks, "E0221", "shape of the result", "gradient[gradient > 0]"),
        (Forgets, "E0224", "has no attribute 'factor'", "ctx.factor"),
        (OneTooMany, "E0224", "returns 2 gradients for 1 inputs", "self.function.apply"),
        (OtherShape, "E0224", r"a gradient of shape \(4,\) for input 0", "self.function.apply"),
        (ChangesGiven, "E0227", "backward of .* changes a tensor in place that it is given", "gradient.mul_(2)"),
        (Dirty, "E0227", "forward of .* changes a tensor in place that it is given", "x.mul_(2)"),
        (Recomputes, "E0227", "calls torch's autograd inside", "torch.autograd.grad(again"),
    ],
)
def test_a_function_is_refused_at_its_line(function: type[Function], code: str, says: str, line: str) -> None:
    error = refused(Model(function))
    assert error.code == code
    with pytest.raises(CaptureError, match=says):
        raise error
    assert error.span is not None and line in error.span.text
    owner = Model.forward if "self.function" in line else function
    lines, start = inspect.getsourcelines(owner)
    assert error.span.line == start + next(index for index, text in enumerate(lines) if line in text)


def test_a_value_that_leaves_a_function_through_an_attribute_is_refused() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.kept = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            kept: list[Tensor] = []

            class Leaking(Identity):
                @staticmethod
                def forward(ctx: Any, x: Tensor) -> Tensor:
                    kept.append(x * 2)
                    return x.clone()

                @staticmethod
                def backward(ctx: Any, gradient: Tensor) -> Tensor:
                    return gradient

            y: Tensor = Leaking.apply(self.linear(x))  # type: ignore[no-untyped-call]
            return (y + kept[0]).sum()

    error = refused(Keeps())
    assert error.code == "E0227" and "used outside of it" in error.message
    assert error.span is not None and "(y + kept[0])" in error.span.text


def test_a_gradient_through_a_function_inside_of_the_forward_is_refused() -> None:
    class Differentiates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.linear(x)
            [slope] = torch.autograd.grad(Tripled.apply(hidden).sum(), hidden)  # type: ignore[no-untyped-call]
            return (hidden * slope).sum()

    error = refused(Differentiates())
    assert error.code == "E0227" and 'through "Tripled"' in error.message
    assert error.span is not None and "torch.autograd.grad" in error.span.text


def test_inference_needs_no_backward() -> None:
    captured = capture(Model(Branches), (torch.randn(5, 4),), {}, mode=Mode.INFER)
    assert {output.kind for output in captured.outputs} == {OutputKind.OUTPUT}
