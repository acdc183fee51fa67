"""Ops that mark where a custom autograd function stands in a trace; `extraction.py` removes them.

%a = function_value(%x)                    an input of the function, or a tangent of one of its outputs
.. the function's forward and backward, on such values ..
%y = function_call([%x], [%a], [%out], [%tangent], [%gradient], [0], "module.Name")
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("stretto", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch leaves it untyped
_LIBRARY.define("function_value(Tensor like) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "function_call(Tensor[] inputs, Tensor[] values, Tensor[] outputs, Tensor?[] tangents, Tensor?[] gradients, "
    "int[] differentiable, str name) -> Tensor[]"
)


def _value(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")


def _outputs(
    inputs: Sequence[Tensor],
    values: Sequence[Tensor],
    outputs: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    differentiable: Sequence[int],
    name: str,
) -> list[Tensor]:
    return [_value(output) for output in outputs]


torch.library.register_fake("stretto::function_value", _value, lib=_LIBRARY)
torch.library.register_fake("stretto::function_call", _outputs, lib=_LIBRARY)

VALUE: torch._ops.OpOverload = torch.ops.stretto.function_value.default
"""A tensor of the shape of `like` without its gradient, and with memory of its own."""
CALL: torch._ops.OpOverload = torch.ops.stretto.function_call.default
"""The outputs of a function.

`values` stand for `inputs` in the function, `tangents` for the gradients of the outputs `differentiable`; `gradients`
are what its backward returns for the inputs. A function that tells an absent gradient from zeros has several backwards:
`tangents` and `gradients` then list those of all, one backward after the other.
"""
