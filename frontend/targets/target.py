"""What a target is: a model with one example of its inputs, and what may be asked of it beside that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...diagnostics import StrettoError
from ..captured import Mode

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
"""The dtypes a model can be asked for, by their names on the command line."""


class TargetError(StrettoError):
    """A target that gives no model: the place is the user's own file and line where there is one."""


@dataclass(frozen=True)
class Request:
    """What is asked of a target beside the model itself; a `file.py:name` target decides its inputs' shapes alone."""

    mode: Mode = Mode.TRAIN
    batch: int = 1
    seq: int | None = None
    """Tokens per example; None: 128, or fewer where the model has fewer positions."""
    dtype: str | None = None
    """A key of `DTYPES`, for parameters and inputs; None keeps the target's own."""
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """A model with one example of its inputs."""

    model: nn.Module
    inputs: dict[str, Any]
    """The arguments of forward, by name."""
    weights_are_real: bool
    """False where the parameters have shapes but no values."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where the model came from, as a program's manifest says it (JSON-able)."""
    input_ranges: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For integer inputs {"high": n}: values 0 to n - 1 are valid (for a `file.py:name` target: were seen to be).

    With "ignore_index": true a check may also set labels to -100, which the loss leaves out.
    """


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """New floating tensors get `dtype`; None changes nothing."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
