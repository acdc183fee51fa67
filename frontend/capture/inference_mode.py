"""Trace `torch.inference_mode` as `torch.no_grad`: torch records the latter only, so a graph would lose the former.

The values are the same. Eager mode refuses a few uses of what inference mode computed, which the graph allows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def inference_mode_as_no_grad() -> Iterator[None]:
    """Inside, `torch.inference_mode(on)`, as context or decorator, is `torch.set_grad_enabled(not on)`."""
    original = torch._C._InferenceMode
    torch._C._InferenceMode = _GradientsSwitched  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch._C._InferenceMode = original  # type: ignore[misc]


class _GradientsSwitched:
    """Stands for torch's guard, which ends with its object at the latest: dynamo enters one and drops it."""

    def __init__(self, inference: bool) -> None:
        self._gradients = not inference
        self._before: bool | None = None

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(self._gradients)

    def __exit__(self, *_error: object) -> None:
        if self._before is not None:
            torch._C._set_grad_enabled(self._before)
        self._before = None

    def __del__(self) -> None:
        self.__exit__()
