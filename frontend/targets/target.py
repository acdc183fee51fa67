"""The values of targets: a request, and a model with an example of its inputs."""

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
"""The dtypes that a request may have, by their names on the command line."""


class TargetError(StrettoError):
    """A target that cannot be loaded; the span is in the user's file, if there is one."""


@dataclass(frozen=True)
class Request:
    """Options of a target; a `file.py:name` target ignores `batch` and `seq`."""

    mode: Mode = Mode.TRAIN
    batch: int = 1
    seq: int | None = None
    """Tokens per example; None: 128, or the model's number of positions if smaller."""
    dtype: str | None = None
    """A key of `DTYPES`, for parameters and inputs; None keeps the target's own."""
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """A model with an example of its inputs."""

    model: nn.Module
    inputs: dict[str, Any]
    """The arguments of forward, by name."""
    weights_are_real: bool
    """False for fake parameters, which have shapes but no values."""
    source: dict[str, Any] = field(default_factory=dict)
    """The origin of the model as JSON, for a program's manifest."""
    input_ranges: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For integer inputs {"high": n}: values 0 to n - 1 are valid; for a `file.py:name` target, as seen in the example.

    With "ignore_index": true, a check may also use the label -100, which the loss ignores.
    """


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, new floating tensors get `dtype`; None changes nothing."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
