"""Build a model with fake parameters (shapes without memory) and real buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


@contextlib.contextmanager
def fake_parameters() -> Iterator[FakeTensorMode]:
    """Inside, every parameter that a module registers becomes a fake tensor of its shape and dtype.

    A parameter is allocated before it is registered, but memory that is never written costs nothing. Buffers stay real,
    as a program needs their values, such as tables of rotary frequencies.
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
