"""A program as a node of the caller's autograd graph: `loss.backward()` runs the program's backward."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RunError
from ..program.program import Program
from ..program.records import Input
from ..session import Session, State
from .unreduced_gradients import UnreducedGradients


@dataclass(frozen=True)
class Accumulation:
    """Gradient accumulation: what a backward does with the gradients that its program leaves unreduced."""

    unreduced: UnreducedGradients
    """Sums the gradients over several backwards."""
    delivers: bool
    """Whether this backward reduces the sums and gives them to the parameters."""


def run(
    session: Session,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    inputs: Sequence[Tensor],
    accumulation: Accumulation | None = None,
    *,
    states: Sequence[Tensor] = (),
    scale: float = 1.0,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs, and new values of buffers by name, which the caller writes back once.

    Arguments are in the order of `program.of_kind("parameter" | "buffer" | "input")`. Parameters and float inputs that
    the program has gradients for are differentiable, where they require a gradient and grad mode is on. Several
    forwards may run before their backwards. Only outputs for which the program has a tangent may be differentiated.
    A pipeline's forward computes the gradients times `scale`; its backward multiplies them by the incoming gradient.
    The backward raises RunError E0335 where a parameter was written to since the forward.
    """
    tensors = [*parameters, *inputs]
    named = [*session.program.of_kind("parameter"), *session.program.of_kind("input")]
    with_gradient = {output.name for output in session.program.results_of_kind("gradient")}
    needs_gradient = any(
        tensor.requires_grad and argument.name in with_gradient
        for argument, tensor in zip(named, tensors, strict=False)
    )
    if not (torch.is_grad_enabled() and needs_gradient):
        outputs, state = session.forward(parameters, buffers, inputs, states=states, scale=scale)
        return outputs, dict(state.buffers)
    elsewhere = {argument.name for argument, p in zip(named, parameters, strict=False) if not session.holds(p)}
    call = _Call(session, named, len(parameters), buffers, states, accumulation, scale, elsewhere)
    tensors = [t.detach() if a.name in elsewhere else t for a, t in zip(named, tensors, strict=True)]
    root = torch.zeros((), requires_grad=True)
    results = _Step.apply(call, root, *tensors)  # type: ignore[no-untyped-call]
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
        states: Sequence[Tensor],
        accumulation: Accumulation | None,
        scale: float,
        elsewhere: Container[str],
    ) -> None:
        self.session = session
        self.named = named
        self.parameters = parameters
        self.buffers = buffers
        self.states = states
        self.accumulation = accumulation
        self.scale = scale
        self.elsewhere = elsewhere
        """Parameters of which this process has no part: they take part in the backward, and get no gradient here, so
        that their hooks are not called with None."""
        self.state: State | None = None

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The global outputs; keeps the state for the backward."""
        split = self.parameters
        outputs, self.state = self.session.forward(
            tensors[:split], self.buffers, tensors[split:], states=self.states, scale=self.scale
        )
        return tuple(outputs)

    def backward(self, grads: Sequence[Tensor | None], names: Container[str]) -> dict[str, Tensor]:
        """Gradients by name, given the gradients of all outputs. Accumulated ones are reduced if in `names`."""
        tangents = {argument.index: argument for argument in self.session.program.of_kind("tangent")}
        tangent_of_output: dict[int | None, Tensor | None] = {}
        for output, grad in zip(self.session.program.results_of_kind("output"), grads, strict=True):
            if output.index in tangents:
                tangent_of_output[output.index] = grad
            elif grad is not None:
                raise _not_differentiable(output.index, output.name, list(tangents))
        assert self.state is not None, "forward has run"
        _check_tangents(self.session.program, tangent_of_output.values())
        ordered = [tangent_of_output.get(index) for index in tangents]
        if self.accumulation is None:
            return self.session.backward(self.state, ordered)
        unreduced = self.accumulation.unreduced
        gradients = self.session.backward(self.state, ordered, unreduced)
        if self.accumulation.delivers and unreduced:
            for name, accumulated in self.session.reduce(unreduced, names).items():
                gradients[name] = gradients[name] + accumulated if name in gradients else accumulated
        return gradients


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, root: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`root` makes the results differentiable where this process holds no parameter."""
        ctx.set_materialize_grads(False)
        ctx.call = call
        ctx.versions = [(tensor, _version(tensor)) for tensor in (*tensors, *call.buffers)]
        return call.forward(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RunError(
                "E0334",
                "create_graph=True asks for the gradient of a gradient, which a program does not compute",
                help="compute the second derivative with the uncompiled model",
            )
        call: _Call = ctx.call
        _check_unchanged([*call.named, *call.session.program.of_kind("buffer")], ctx.versions)
        needs = ctx.needs_input_grad[2:]
        pairs = zip(call.named, needs, strict=True)
        gradients = call.backward(grads, {each.name for each, need in pairs if need or each.name in call.elsewhere})
        return (
            None,
            None,
            *(gradients.get(argument.name) if need else None for argument, need in zip(call.named, needs, strict=True)),
        )


def _check_unchanged(named: Sequence[Input], versions: Sequence[tuple[Tensor, int]]) -> None:
    """Raise RunError E0335 for a tensor that was written to between the forward and the backward that reads it."""
    for argument, (tensor, version) in zip(named, versions, strict=True):
        if _version(tensor) != version:
            raise RunError(
                "E0335",
                f"{argument.kind} '{argument.name}' was changed between this forward and its backward",
                expected="the values that the forward used",
                help="call backward() before optimizer.step() or any other in-place change, or run the forward again; "
                "if the loop changes nothing in between, please report the model",
            )


def _check_tangents(program: Program, tangents: Iterable[Tensor | None]) -> None:
    """Raise RunError E0337 where gradients that a pipeline has computed cannot be multiplied by the caller's."""
    nonlinear = program.pipeline.nonlinear if program.pipeline is not None else ()
    if nonlinear and any(tangent is not None and bool((tangent != 1).any()) for tangent in tangents):
        raise RunError(
            "E0337",
            f"the backward of '{nonlinear[0]}' is not linear in the gradient that it gets, and a pipeline, which runs "
            "backwards inside of the forward, has run it for a loss that is not scaled",
            expected="loss.backward() on the loss itself",
            help="call model.step(..., scale=s) in place of (s * loss).backward()",
        )


def _version(tensor: Tensor) -> int:
    """torch's count of in-place changes; 0 for inference tensors, which have no count and do not change later."""
    return 0 if tensor.is_inference() else tensor._version


def _not_differentiable(index: int | None, name: str, tangents: Sequence[int | None]) -> RunError:
    differentiable = ", ".join(str(index) for index in tangents)
    return RunError(
        "E0331",
        f"a gradient arrived for output {index}{f' ({name})' if name else ''}, "
        f"which the program was not compiled to differentiate; it can differentiate output {differentiable}",
        help="compute the loss inside the model's forward, or detach this output before using it in a loss",
    )
