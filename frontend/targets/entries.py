"""The entries of a target: methods or other callables of one model, each with an example of its inputs.

    def llama():
        model = Llama()
        return model, {"prefill": (model.prefill, {...}), "decode": (model.decode, {...})}

An entry is captured as the forward of a view of the model: an object of a subclass that shares its attributes, so that
parameters and buffers are the same tensors under the same names.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class TargetEntry:
    """A callable of a model, with an example of its arguments by name."""

    call: Callable[..., Any]
    inputs: dict[str, Any]


def entries_of(value: Mapping[str, Any]) -> dict[str, TargetEntry]:
    """The entries that a dict names; none where it holds inputs, of which none is a pair of a callable and a dict."""
    return {
        name: TargetEntry(*pair)
        for name, pair in value.items()
        if isinstance(pair, tuple)
        and len(pair) == 2
        and callable(pair[0])
        and isinstance(pair[1], dict)
        and all(isinstance(key, str) for key in pair[1])
    }


def entry_view(model: nn.Module, call: Callable[..., Any]) -> nn.Module:
    """The model with `call` as its forward; the model itself where that is its forward already.

    Inside the call, the model's own call is that of its forward: `self(x)` in a method means what it did.
    """
    if call is model or (inspect.ismethod(call) and call.__self__ is model and call.__name__ == "forward"):
        return model
    base = type(model)
    is_own = inspect.ismethod(call) and call.__self__ is model
    function: Callable[..., Any] = call.__func__ if inspect.ismethod(call) and is_own else call
    signature = inspect.signature(call)
    running: list[bool] = []

    @functools.wraps(call)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if running:
            return base.forward(self, *args, **kwargs)
        running.append(True)
        try:
            return function(self, *args, **kwargs) if is_own else function(*args, **kwargs)
        finally:
            running.clear()

    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    described: Any = forward
    described.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])
    members = {"__module__": base.__module__, "__qualname__": base.__qualname__, "forward": forward}
    cls: Any = types.new_class(base.__name__, (base,), exec_body=lambda body: body.update(members))
    view: nn.Module = cls.__new__(cls)
    object.__setattr__(view, "__dict__", model.__dict__)
    return view
