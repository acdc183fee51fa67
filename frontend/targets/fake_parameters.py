"""Build a model whose parameters have shapes but no memory, while its buffers have their real values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


@contextlib.contextmanager
def fake_parameters() -> Iterator[FakeTensorMode]:
    """Inside, every parameter that a module registers becomes a fake tensor of its shape and dtype.

    A parameter is allocated before it is registered; memory that nobody writes to costs nothing, and it is let go at
    once. Buffers stay real: tables such as rotary frequencies are computed once, and a program needs their values.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    register = nn.Module.register_parameter

    def register_fake(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not isinstance(parameter, FakeTensor):
            with mode:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                parameter = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_fake  # type: ignore[method-assign, assignment]
    try:
        yield mode
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
