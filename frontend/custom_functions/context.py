"""The `ctx` of a custom autograd function while it is traced."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.function import FunctionCtx


class TracedContext(FunctionCtx):
    """Keeps what the function's forward saves and marks. Its own attributes are those that the function sets."""

    to_save: tuple[Tensor, ...] = ()
    non_differentiable: tuple[Tensor, ...] = ()
    dirty_tensors: tuple[Tensor, ...] = ()
    materialize_grads: bool = True

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors given to `save_for_backward`."""
        return tuple(self.to_save)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"'ctx' has no attribute '{name}'; the forward sets what the backward reads")
