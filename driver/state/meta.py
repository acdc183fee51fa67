"""Building a model without memory for its parameters, but with its buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Inside, a parameter moves to the meta device as soon as a module registers it; buffers keep their values.

    So a model that is larger than memory can be built. `stretto.compile(model, plan=..., weights=PATH)` fills it
    afterwards, each process with its own part. (`torch.device("meta")` would also lose buffers that the model computes,
    such as the frequencies of rotary embeddings.) Not thread-safe.

    >>> with meta_parameters():
    ...     model = nn.BatchNorm1d(3)
    >>> model.weight.is_meta, model.running_var.is_meta
    (True, False)
    """
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        parameter_now = module._parameters[name]
        if parameter_now is not None and not parameter_now.is_meta:
            on_meta = nn.Parameter(parameter_now.detach().to("meta"), parameter_now.requires_grad)
            on_meta.__dict__.update(parameter_now.__dict__)
            module._parameters[name] = on_meta

    nn.Module.register_parameter = registered  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
