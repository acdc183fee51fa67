"""NaN detection: on request, a program checks the results of every instruction for NaN.

Inside `detect_anomaly()` a program fails where one of its outputs or gradients has a NaN, and names the first
instruction that made one. A NaN that reaches no output is no failure: padding and masked values may have NaN without
harm. (torch's own mode of that name checks gradients in the caller's graph, which fails where they are DTensors.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from ..errors import RunError

_UNSET = ("aten.empty", "aten.new_empty")
"""Ops that return uninitialized memory."""


_open_contexts = 0
"""The number of open `detect_anomaly` contexts of all threads, because programs run in other threads than callers."""


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """A context in which programs look for the cause of wrong values. Slow, for debugging only.

    A NaN in an output or a gradient raises StrettoError E0336, which names the first operation that made one. Where
    ranks are processes, the inputs of every call are compared between them, and inputs that differ raise E0603.
    """
    global _open_contexts
    _open_contexts += 1
    try:
        yield
    finally:
        _open_contexts -= 1


class NanFound(RunError):
    """An output or gradient has a NaN (E0336)."""

    from_collective = False
    """Whether a collective brought it to this rank, so that the error of another rank names the cause."""


class NanWatch:
    """Finds the first NaN of one rank in one forward or backward."""

    def __init__(self) -> None:
        self.first: tuple[str, int] | None = None
        """The function and the index of the first instruction with a NaN in its results."""

    def __call__(self, function: str, index: int, op: str, *results: object) -> None:
        """Check the results of an instruction."""
        if self.first is None and not op.startswith(_UNSET) and any(_has_nan(value) for value in results):
            self.first = (function, index)


def is_detecting() -> bool:
    """Whether a `detect_anomaly` context is open."""
    return _open_contexts > 0


def first_with_nan(tensors: Iterable[Tensor]) -> int | None:
    """The index of the first tensor that has a NaN; None where none has."""
    return next((index for index, tensor in enumerate(tensors) if _has_nan(tensor)), None)


def _has_nan(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())
