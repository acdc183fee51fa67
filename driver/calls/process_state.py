"""What a call of the compiled model leaves behind in the process, the compile in the first one included.

A patch of torch that capture does not undo, or a generator that starts again, changes what the caller's other code
does. Patches are compared with torch as it was when this module was imported, before any compile of this process.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType

import numpy as np
import torch
import torch.utils.checkpoint
from torch.distributions import Distribution
from torch.nn import functional

_OWNERS: dict[str, object] = {
    "torch": torch, "torch.Tensor": torch.Tensor, "torch.nn.functional": functional, "torch.nn.Module": torch.nn.Module,
    "torch.nn.Parameter": torch.nn.Parameter, "torch.autograd": torch.autograd, "torch.random": torch.random,
    "torch.autograd.Function": torch.autograd.Function, "torch.utils.checkpoint": torch.utils.checkpoint,
    "torch.distributions.Distribution": Distribution, "torch.optim.Optimizer": torch.optim.Optimizer,
}  # fmt: skip
"""Modules and classes whose functions and switches a capture may replace."""
RANDOM_STATE = "torch's random state"
_KEPT: dict[str, Callable[[], object]] = {
    RANDOM_STATE: lambda: torch.get_rng_state().numpy().tobytes(),
    "Python's random state": random.getstate,
    "NumPy's random state": lambda: repr(np.random.get_state()),
    "the default dtype": torch.get_default_dtype,
    "the default device": lambda: str(torch.get_default_device()),
    "whether gradients are enabled": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "autocast": lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    "the number of threads": torch.get_num_threads,
    "deterministic algorithms": lambda: (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        getattr(torch.utils.deterministic, "fill_uninitialized_memory", None),
    ),
    "anomaly detection": torch.is_anomaly_enabled,
    "sys.path": lambda: list(sys.path),
    "the current folder": os.getcwd,
    "environment variables": lambda: dict(os.environ),
}  # fmt: skip


def after_a_number() -> torch.Tensor:
    """The state of torch's generator once it has given one number more: a forward that draws takes one."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    torch.rand((), generator=generator)
    return generator.get_state()


@contextmanager
def noting_changes(changed: set[str]) -> Iterator[None]:
    """Add what is different in the process at the end of the context."""
    importlib.import_module("torch._dynamo")  # it sets environment variables, once
    before = {name: read() for name, read in _KEPT.items()}
    yield
    changed.update(name for name, read in _KEPT.items() if read() != before[name])
    for name, owner in _OWNERS.items():
        after = {key: _plain(value) for key, value in _members(owner).items()}
        changed.update(f"{name}.{key}" for key, value in _AT_FIRST[name].items() if after.get(key) is not value)


def _members(owner: object) -> dict[str, object]:
    """Functions, classes and switches; not what torch counts or caches in the same place."""
    kinds = (FunctionType, type, bool, staticmethod, classmethod, property)
    return {key: value for key, value in vars(owner).items() if isinstance(value, kinds)}


def _plain(value: object) -> object:
    """A function without a wrapper of torch's own: `torch._dynamo` wraps some when it is imported."""
    is_wrapped = isinstance(value, FunctionType) and value.__code__.co_filename == torch._compile.__file__
    return getattr(value, "__wrapped__", value) if is_wrapped else value


_AT_FIRST = {name: {key: _plain(value) for key, value in _members(owner).items()} for name, owner in _OWNERS.items()}
