"""Building a model without memory for its parameters, but with its buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Inside, a parameter goes to the meta device as soon as a module is given it; buffers keep their values.

    So a model that is larger than the memory can be built, and then be filled by `stretto.compile(model, plan=...,
    weights=PATH)`, each process with its own part. (Under `torch.device("meta")` buffers that a model computes, such as
    the frequencies of rotary embeddings, would be lost.) Not for two threads at once.

    >>> with meta_parameters():
    ...     model = nn.BatchNorm1d(3)
    >>> model.weight.is_meta, model.running_var.is_meta
    (True, False)
    """
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        kept = module._parameters[name]
        if kept is not None and not kept.is_meta:
            made = nn.Parameter(kept.detach().to("meta"), kept.requires_grad)
            made.__dict__.update(kept.__dict__)
            module._parameters[name] = made

    nn.Module.register_parameter = registered  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
