"""A program as a step of the caller's own autograd graph: `loss.backward()` runs the program's backward."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RunError
from ..program.records import Input
from ..session import Session, State
from .unreduced_gradients import Addends


@dataclass(frozen=True)
class Accumulation:
    """What a backward does with gradients that its program leaves unreduced, and with those that wait already."""

    addends: Addends
    """Where they wait, over several backwards."""
    delivers: bool
    """Whether this backward reduces all that waits and gives it to the parameters."""


def run(
    session: Session,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    inputs: Sequence[Tensor],
    accumulation: Accumulation | None = None,
    *,
    scale: float = 1.0,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs, and new values of buffers by name, which the caller writes back once.

    Arguments stand as `program.of_kind("parameter" | "buffer" | "input")` lists them. Parameters (and float inputs)
    that the program has gradients for are differentiable, where they require a gradient and grad mode is on. Forwards
    may be run again before their backwards. Only outputs that the program has a tangent for may be differentiated.
    A pipeline's forward makes the gradients, times `scale`; the backward gives them times the incoming gradient.
    Raises RunError E0335 in a backward whose parameters were written to since its forward.
    """
    tensors = [*parameters, *inputs]
    named = [*session.program.of_kind("parameter"), *session.program.of_kind("input")]
    with_gradient = {each.name for each in session.program.results_of_kind("gradient")}
    wanted = any(
        tensor.requires_grad and each.name in with_gradient for each, tensor in zip(named, tensors, strict=False)
    )
    if not (torch.is_grad_enabled() and wanted):
        outputs, state = session.forward(parameters, buffers, inputs, scale=scale)
        return outputs, dict(state.buffers)
    call = _Call(session, named, len(parameters), buffers, accumulation, scale)
    results = _Step.apply(call, *tensors)  # type: ignore[no-untyped-call]
    assert call.state is not None, "forward has run"
    return list(results), dict(call.state.buffers)


class _Call:
    """One forward and its backward."""

    def __init__(
        self,
        session: Session,
        named: Sequence[Input],
        parameters: int,
        buffers: Sequence[Tensor],
        accumulation: Accumulation | None,
        scale: float,
    ) -> None:
        self.session = session
        self.named = named
        self.parameters = parameters
        self.buffers = buffers
        self.accumulation = accumulation
        self.scale = scale
        self.state: State | None = None

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Global outputs; the state stays here for the backward."""
        split = self.parameters
        outputs, self.state = self.session.forward(tensors[:split], self.buffers, tensors[split:], scale=self.scale)
        return tuple(outputs)

    def backward(self, grads: Sequence[Tensor | None], wanted: Container[str]) -> dict[str, Tensor]:
        """Gradients by name, for the gradients of all outputs; of those that wait the wanted ones."""
        tangents = {each.index: each for each in self.session.program.of_kind("tangent")}
        given: dict[int | None, Tensor | None] = {}
        for output, grad in zip(self.session.program.results_of_kind("output"), grads, strict=True):
            if output.index in tangents:
                given[output.index] = grad
            elif grad is not None:
                raise _not_differentiable(output.index, output.name, list(tangents))
        assert self.state is not None, "forward has run"
        ordered = [given.get(index) for index in tangents]
        if self.accumulation is None:
            return self.session.backward(self.state, ordered)
        addends = self.accumulation.addends
        gradients = self.session.backward(self.state, ordered, addends)
        if self.accumulation.delivers and addends:
            for name, waiting in self.session.reduce(addends, wanted).items():
                gradients[name] = gradients[name] + waiting if name in gradients else waiting
        return gradients


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.call = call
        ctx.given = [(tensor, _version(tensor)) for tensor in (*tensors, *call.buffers)]
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
        _check_unchanged([*call.named, *call.session.program.of_kind("buffer")], ctx.given)
        needs = ctx.needs_input_grad[1:]
        gradients = call.backward(grads, {each.name for each, need in zip(call.named, needs, strict=True) if need})
        return None, *(gradients.get(each.name) if need else None for each, need in zip(call.named, needs, strict=True))


def _check_unchanged(named: Sequence[Input], given: Sequence[tuple[Tensor, int]]) -> None:
    """Raise RunError E0335 for a tensor that was written to since the forward, which its backward would now read."""
    for each, (tensor, version) in zip(named, given, strict=True):
        if _version(tensor) != version:
            raise RunError(
                "E0335",
                f"{each.kind} '{each.name}' was changed between this forward and its backward",
                expected="the values that the forward has used",
                help="call backward() before optimizer.step() or any other in-place change, or run the forward again",
            )


def _version(tensor: Tensor) -> int:
    """How often it was written to; tensors made in inference mode do not count, and cannot be written to outside it."""
    return 0 if tensor.is_inference() else tensor._version


def _not_differentiable(index: int | None, name: str, tangents: Sequence[int | None]) -> RunError:
    can = ", ".join(str(each) for each in tangents)
    return RunError(
        "E0331",
        f"a gradient arrived for output {index}{f' ({name})' if name else ''}, "
        f"which the program was not compiled to differentiate; it can differentiate output {can}",
        help="compute the loss inside the model's forward, or detach this output before using it in a loss",
    )
