"""Keep the backward of custom autograd functions, and refuse backward hooks: export would silently drop both.

The reference comes from the same export, so no later check would see the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from ..captured import CaptureError
from ..custom_functions.recording import is_recording, record_call

_HELP = "write the forward so that torch's own derivatives are right, for example with x.detach()"


def refuse_backward_hooks(model: nn.Module) -> None:
    """Errors: E0227 for a module with a backward hook. Forward hooks are traced; hooks of parameters stay live."""
    for path, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise CaptureError(
                "E0227",
                f'module "{path}" has a backward hook, which the captured graph would not run',
                help="remove the hook, or put it on a parameter",
            )


@contextlib.contextmanager
def own_gradients_kept() -> Iterator[None]:
    """Inside, custom autograd functions are recorded with their backward, and hooks on tensors raise E0227.

    Torch's own functions are allowed, as they do not change gradients. A reentrant checkpoint is traced as its body:
    what a backward recomputes is the plan's choice.
    """
    apply = torch.autograd.Function.__dict__["apply"]
    register_hook = torch.Tensor.register_hook

    def record_apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:
            function, _preserves_rng_state, *inputs = args
            return _checkpointed(function, inputs)
        inside = is_recording()
        differentiates = torch.is_grad_enabled() and _any_requires_grad((*args, *kwargs.values()))
        if inside or not differentiates or _is_torchs(cls):
            return apply.__get__(None, cls)(*args, **kwargs)
        return record_call(cls, args, kwargs)

    def refuse_hook(tensor: torch.Tensor, hook: Any) -> NoReturn:
        raise CaptureError("E0227", "the forward puts a hook on the gradient of a tensor", help=_HELP)

    torch.autograd.Function.apply = classmethod(record_apply)  # type: ignore[method-assign, assignment]
    torch.Tensor.register_hook = refuse_hook  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]
        torch.Tensor.register_hook = register_hook  # type: ignore[method-assign]


def _checkpointed(function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    """The result of a reentrant checkpoint's body. Errors: E0227 where eager mode would give its parameters None."""
    result = function(*inputs)
    if torch.is_grad_enabled() and not _any_requires_grad(inputs) and _any_requires_grad(pytree.tree_leaves(result)):
        raise CaptureError(
            "E0227",
            "a reentrant checkpoint gets no input that requires a gradient, so that torch gives its parameters none",
            expected="an input that requires a gradient, or use_reentrant=False",
            help="call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
        )
    return result


def _is_torchs(cls: type[torch.autograd.Function]) -> bool:
    """Whether a function is torch's own; dynamo wraps those of the model in `ApplyTemplate`."""
    return cls.__module__.partition(".")[0] == "torch" and cls.__name__ != "ApplyTemplate"


def _any_requires_grad(values: Sequence[Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)
