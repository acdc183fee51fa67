"""Where a NaN began: looked for after every instruction, on request.

A program that runs inside `detect_anomaly()` looks at all that its instructions give, and fails where one of its
results holds a NaN, naming the first instruction that made one. Padding and values that are masked out may hold NaN
without harm, so that a NaN which no result shows is no failure. (torch's own mode of that name looks at gradients in
the caller's graph, which it cannot do where they are DTensors.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from ..errors import RunError

_UNSET = ("aten.empty", "aten.new_empty")
"""Ops that give memory as they find it."""


_askers = 0
"""How many `detect_anomaly` are open, in all threads: what runs a program runs it in others."""


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Inside, programs look for what goes wrong at each step; slow, and meant for finding a cause.

    A NaN in a result of a forward, or in a gradient, raises StrettoError E0336, which names the first operation that
    made one. Where ranks are processes, the inputs of every call are compared, and those that differ raise E0603.
    """
    global _askers
    _askers += 1
    try:
        yield
    finally:
        _askers -= 1


class NanFound(RunError):
    """A result holds a NaN (E0336)."""

    arrived = False
    """Whether it came to this rank out of a collective, so that another rank may know better where it began."""


class NanWatch:
    """What one rank sees in one forward or backward."""

    def __init__(self) -> None:
        self.first: tuple[str, int] | None = None
        """The function and the index of the first instruction that gave a NaN."""

    def __call__(self, function: str, index: int, op: str, *given: object) -> None:
        """Look at what an instruction gave."""
        if self.first is None and not op.startswith(_UNSET) and any(_has_nan(each) for each in given):
            self.first = (function, index)


def is_asked() -> bool:
    """Whether the caller wants NaNs found."""
    return _askers > 0


def first_with_nan(tensors: Iterable[Tensor]) -> int | None:
    """The position of the first tensor that holds a NaN."""
    return next((at for at, each in enumerate(tensors) if _has_nan(each)), None)


def _has_nan(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())
