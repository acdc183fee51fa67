"""The idioms that a compile keeps whole, as functions with a kind: attention, and what the caller has kernels for."""

from __future__ import annotations

from ...passes.normalize.idioms.bodies import BODIES
from ...passes.normalize.idioms.whole import WHOLE
from ...runtime.implementations.registry import registered_kinds


def kept_kinds() -> tuple[str, ...]:
    """The names of their kinds, for the pipeline and for the key of the cache."""
    return (*WHOLE, *(kind for kind in registered_kinds() if f"nn.{kind}" in BODIES and kind not in WHOLE))
