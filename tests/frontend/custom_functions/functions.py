"""Custom autograd functions as models have them, and a model around each. What each backward computes tells it apart
from the derivative of its forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Tripled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3


class Clamped(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(-0.02, 0.01)


class BloomGelu(Function):
    """As BLOOM's: forward and backward written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        tanh = torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))
        slope = 0.5 * x * ((1 - tanh * tanh) * (0.79788456 + 0.1070322243 * x * x)) + 0.5 * (1 + tanh)
        return slope * gradient


class FusedNorm(Function):
    """An RMS norm that saves what its backward needs, with a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return x * scale * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normal, weighted = x * scale, gradient * weight
        of_x = scale * (weighted - normal * (weighted * normal).mean(-1, keepdim=True))
        return of_x, (gradient * normal).flatten(0, -2).sum(0), None


class FusedLoss(Function):
    """A cross-entropy whose forward computes the gradient too; the tangent only scales it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_sums = logits.logsumexp(-1, keepdim=True)
        ctx.gradient = (logits - log_sums).exp()
        ctx.gradient.scatter_add_(-1, labels.unsqueeze(-1), -torch.ones_like(log_sums))
        ctx.gradient /= labels.numel()
        return (log_sums - logits.gather(-1, labels.unsqueeze(-1))).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient * gradient, None


class Scaled(Function):
    """Attributes of ctx that are no tensors, and one that is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, how: str) -> Tensor:
        ctx.factor, ctx.how, ctx.sizes, ctx.signs = factor, how, tuple(x.shape), x.sign()
        return x * factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        assert ctx.how == "twice"
        return gradient.reshape(ctx.sizes) * ctx.signs * (2 * ctx.factor), None, None


class WithContext(Function):
    """Of the style with `setup_context`, with a default."""

    @staticmethod
    def forward(x: Tensor, power: int = 2) -> Tensor:
        return x**power

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.power = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, output = ctx.saved_tensors
        return gradient * (x + output) * ctx.power, None


class Product(Function):
    """Says by `needs_input_grad` what it computes; wrong for inputs that need none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        both = all(ctx.needs_input_grad)
        return (gradient * y * (5 if both else 7)) if ctx.needs_input_grad[0] else None, gradient * x


class TwoOutputs(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x.sin(), x.cos().sum(-1)

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * first * x + 3 * second.unsqueeze(-1)


class AbsentGradients(Function):
    """Computes otherwise where an output is not used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None) -> Tensor | None:
        if first is None:
            return second
        return first * 11 if second is None else first * second


class Largest(Function):
    """An output that is not differentiable, of floats, and one of integers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, places = x.max(-1)
        ctx.save_for_backward(x)
        ctx.mark_non_differentiable(values)
        return x * 2, values, places

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_values: Tensor, of_places: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x


class Once(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result = gradient.clone()
        result[result < 0] = 0
        result[0] *= 2
        return result


class Recomputes(Function):
    """A checkpoint of its own: the backward computes the forward again, and twice its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.tanh(x @ weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, weight = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            again = torch.tanh(x @ weight)
        return tuple(2 * each for each in torch.autograd.grad(again, (x, weight), gradient))


class Nested(Function):
    """Calls another function, whose backward does not count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, others: list[Tensor]) -> Tensor:
        ctx.save_for_backward(others[0])
        return Tripled.apply(x) + others[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class Broadcast(Function):
    """Its gradient for the weight is summed by autograd, as that of a broadcast operand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x + weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient * ctx.saved_tensors[0]


class Written(nn.Module):
    """A model whose forward is `body(model, x)`, between two linears."""

    scale: Tensor

    def __init__(self, body: Callable[[Written, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.weight = nn.Parameter(torch.rand(6) + 0.5)
        self.square = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("scale", torch.rand(6) + 0.5)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self, self.first(x))).sin().mean()


def _labels(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0]) % x.shape[1]


BODIES: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "straight through": lambda m, x: StraightThrough.apply(4 * x),
    "tripled, returns its input": lambda m, x: Tripled.apply(x),
    "clamped": lambda m, x: Clamped.apply(x),
    "two clamped after each other": lambda m, x: Clamped.apply(m.last(Clamped.apply(x)) * 2),
    "BLOOM's GELU": lambda m, x: BloomGelu.apply(x),
    "a fused norm": lambda m, x: FusedNorm.apply(x, m.weight, 1e-5),
    "a fused loss": lambda m, x: x + FusedLoss.apply(x, _labels(x)),
    "attributes of ctx": lambda m, x: Scaled.apply(x, 0.5, "twice"),
    "setup_context": lambda m, x: WithContext.apply(x, 3),
    "setup_context with its default": lambda m, x: WithContext.apply(x),
    "needs_input_grad of both": lambda m, x: Product.apply(x, m.weight),
    "needs_input_grad of the first": lambda m, x: Product.apply(x, m.scale),
    "needs_input_grad of the second": lambda m, x: x + Product.apply(m.scale, m.weight),
    "two outputs": lambda m, x: (lambda a, b: a + b.unsqueeze(-1))(*TwoOutputs.apply(x)),
    "two outputs, the first unused": lambda m, x: TwoOutputs.apply(x)[1].unsqueeze(-1) + m.weight,
    "absent gradients, both outputs used": lambda m, x: (lambda a, b: a * b)(*AbsentGradients.apply(x)),
    "absent gradients, the first used": lambda m, x: AbsentGradients.apply(x)[0],
    "absent gradients, the second used": lambda m, x: AbsentGradients.apply(x)[1],
    "outputs that are not differentiable": lambda m, x: (lambda a, b, c: a * b.unsqueeze(-1) + c.unsqueeze(-1))(
        *Largest.apply(x)
    ),
    "once differentiable, in-place ops": lambda m, x: Once.apply(x),
    "calls another, takes a list": lambda m, x: Nested.apply(x, [m.weight * 2]),
    "a gradient that is summed": lambda m, x: Broadcast.apply(x, m.weight),
    "under no_grad": lambda m, x: x + _without_gradient(x),
}


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return Tripled.apply(x)
