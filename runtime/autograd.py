"""A program as a step of the caller's own autograd graph: `loss.backward()` runs the program's backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import RunError
from .interface import Session, State
from .records import Input


def run(
    session: Session, parameters: Sequence[Tensor], buffers: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs, and new values of buffers by name, which the caller writes back once.

    Arguments stand as `program.of_kind("parameter" | "buffer" | "input")` lists them. Parameters (and float inputs)
    that the program has gradients for are differentiable, where they require a gradient and grad mode is on. Forwards
    may be run again before their backwards. Only outputs that the program has a tangent for may be differentiated.
    """
    tensors = [*parameters, *inputs]
    named = [*session.program.of_kind("parameter"), *session.program.of_kind("input")]
    with_gradient = {each.name for each in session.program.results_of_kind("gradient")}
    wanted = any(
        tensor.requires_grad and each.name in with_gradient for each, tensor in zip(named, tensors, strict=False)
    )
    if not (torch.is_grad_enabled() and wanted):
        outputs, state = session.forward(parameters, buffers, inputs)
        return outputs, dict(state.buffers)
    call = _Call(session, named, len(parameters), buffers)
    results = _Step.apply(call, *tensors)  # type: ignore[no-untyped-call]
    assert call.state is not None, "forward has run"
    return list(results), dict(call.state.buffers)


class _Call:
    """One forward and its backward."""

    def __init__(self, session: Session, named: Sequence[Input], parameters: int, buffers: Sequence[Tensor]) -> None:
        self.session = session
        self.named = named
        self.parameters = parameters
        self.buffers = buffers
        self.state: State | None = None

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Global outputs; the state stays here for the backward."""
        split = self.parameters
        outputs, self.state = self.session.forward(tensors[:split], self.buffers, tensors[split:])
        return tuple(outputs)

    def backward(self, grads: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Gradients by name, for the gradients of all outputs."""
        tangents = {each.index: each for each in self.session.program.of_kind("tangent")}
        given: dict[int | None, Tensor | None] = {}
        for output, grad in zip(self.session.program.results_of_kind("output"), grads, strict=True):
            if output.index in tangents:
                given[output.index] = grad
            elif grad is not None:
                raise _not_differentiable(output.index, output.name, list(tangents))
        assert self.state is not None, "forward has run"
        return self.session.backward(self.state, [given.get(index) for index in tangents])


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.call = call
        return call.forward(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RunError(
                "E0334",
                "a gradient of a gradient was asked for (create_graph=True), and a program has none",
                help="compute the second derivative with the uncompiled model",
            )
        call: _Call = ctx.call
        gradients = call.backward(grads)
        needs = ctx.needs_input_grad[1:]
        return None, *(gradients.get(each.name) if need else None for each, need in zip(call.named, needs, strict=True))


def _not_differentiable(index: int | None, name: str, tangents: Sequence[int | None]) -> RunError:
    can = ", ".join(str(each) for each in tangents)
    return RunError(
        "E0331",
        f"a gradient arrived for output {index}{f' ({name})' if name else ''}, "
        f"which the program was not compiled to differentiate; it can differentiate output {can}",
        help="compute the loss inside the model's forward, or detach this output before using it in a loss",
    )
