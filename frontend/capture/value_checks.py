"""What torch's own Python asks of values without computing with the answer: a trace goes past it.

A transformer looks whether its mask is causal, to choose a faster kernel for the same numbers. A distribution looks
whether its parameters are legal. Neither can be answered while a model is traced, and nothing but time or an error
would follow from the answer.
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
    """Inside, masks are taken as they are, and distributions check no parameters unless told to."""
    detect, validate = transformer._detect_is_causal_mask, Distribution._validate_args
    transformer._detect_is_causal_mask = _as_told
    Distribution._validate_args = False
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect
        Distribution._validate_args = validate


def _as_told(mask: Tensor | None, is_causal: bool | None = None, size: Any = None) -> bool:
    """Whether the caller says that a mask is causal."""
    return is_causal is True
