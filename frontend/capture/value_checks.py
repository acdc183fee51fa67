"""Skip checks of tensor values in torch's own Python code while a model is traced.

A transformer checks whether its mask is causal, to choose a faster kernel with equal results. A distribution checks its
parameters. Neither check can run while tracing, and neither changes a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributions import Distribution
from torch.nn.modules import transformer


@contextmanager
def without_value_checks() -> Iterator[None]:
    """Inside, masks are not inspected, and distributions do not validate parameters by default."""
    detect, validate = transformer._detect_is_causal_mask, Distribution._validate_args
    transformer._detect_is_causal_mask = _declared_causal
    Distribution._validate_args = False
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect
        Distribution._validate_args = validate


def _declared_causal(mask: Tensor | None, is_causal: bool | None = None, size: Any = None) -> bool:
    """Whether the caller declares the mask as causal."""
    return is_causal is True
