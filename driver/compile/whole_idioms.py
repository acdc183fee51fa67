"""Which functions with a kind a compile makes: of idioms, attention and what the caller has kernels for; of regions."""

from __future__ import annotations

from ...passes.fusion.outlining import KIND as REGION
from ...passes.normalize.idioms.bodies import BODIES
from ...passes.normalize.idioms.whole import WHOLE
from ...runtime.implementations.registry import implementations, registered_kinds


def kept_kinds() -> tuple[str, ...]:
    """The names of their kinds, for the pipeline and for the key of the cache."""
    return (*WHOLE, *(kind for kind in registered_kinds() if f"nn.{kind}" in BODIES and kind not in WHOLE))


def fuses_regions(target: str) -> bool:
    """Whether chains of small operations become functions: for cuda, and where the caller has kernels for them."""
    return target == "cuda" or any(REGION in each.kinds for each in implementations(target))
