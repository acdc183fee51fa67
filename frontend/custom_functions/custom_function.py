"""A custom autograd function as a module of two graphs, which autograd runs in the joint trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback as fx_traceback

_OF_BACKWARD = ("partitioner_tag", "in_grad_fn", "grad_fn_seq_nr")
"""What torch notes of the backward that it traces: with it, nodes are known as those of this function's backward."""


@dataclass(frozen=True)
class Signature:
    """What a custom function takes and returns."""

    name: str
    inputs: int
    """The number of its inputs. Other operands are values that its graphs read from outside, without a gradient."""
    outputs: int
    differentiable: tuple[int, ...]
    """Indices of the outputs that have a tangent."""


@dataclass(frozen=True)
class Backward:
    """A backward for the case that some tangents are present."""

    present: tuple[bool, ...]
    """For each differentiable output, whether it has a gradient."""
    graph: fx.GraphModule
    """Takes the saved values, then the tangents that are present; returns a gradient or None for each input."""


class CustomFunction(nn.Module):
    """Takes the inputs and the other operands; returns the outputs as a tuple.

    `forward_graph` takes the operands and returns (outputs, saved). There is one backward, for all tangents, unless the
    function tells absent gradients from zeros.
    """

    def __init__(self, signature: Signature, forward_graph: fx.GraphModule, backwards: Sequence[Backward]) -> None:
        super().__init__()
        self.signature = signature
        self.forward_graph = forward_graph
        self.backwards = tuple(backwards)

    def forward(self, *operands: Any) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = _Applied.apply(self, *operands)  # type: ignore[no-untyped-call]
        return result

    def outputs(self, operands: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
        """The outputs, and what the backward needs. No output is an operand, or is another output."""
        results, saved = fx.Interpreter(self.forward_graph).run(*operands)
        seen = {id(operand) for operand in operands}
        outputs: list[Tensor] = []
        for result in results:
            outputs.append(result.clone() if id(result) in seen else result)
            seen.add(id(result))
        return outputs, saved

    def gradients(self, saved: Sequence[Any], tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of the inputs. Traced nodes get the lines of the function's own backward."""
        present = tuple(tangent is not None for tangent in tangents)
        graph = next((backward.graph for backward in self.backwards if backward.present == present), None)
        if graph is None:
            return [None] * self.signature.inputs
        running = fx_traceback.get_current_meta()
        for node in graph.graph.nodes:
            node.meta.update({key: running[key] for key in _OF_BACKWARD if key in running})
        given = (tangent for tangent in tangents if tangent is not None)
        gradients: list[Tensor | None] = fx.Interpreter(graph).run(*saved, *given)
        return gradients


class _Applied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: CustomFunction, *operands: Any) -> tuple[Tensor, ...]:
        outputs, ctx.saved = function.outputs(operands)
        ctx.function, ctx.others = function, len(operands) - function.signature.inputs
        fixed = (o for index, o in enumerate(outputs) if index not in function.signature.differentiable)
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(len(function.backwards) == 1)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        function: CustomFunction = ctx.function
        tangents = [gradients[index] for index in function.signature.differentiable]
        return (None, *function.gradients(ctx.saved, tangents), *(None,) * ctx.others)
