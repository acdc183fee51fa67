"""What the rules of single ops need from the writer of a kernel: values at indices, masks, dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from .indexing import Index
from .region import Region


@dataclass(frozen=True)
class Guard:
    """A condition besides the tile's bounds under which a value is needed: the name of a mask."""

    name: str = ""
    varies: frozenset[str] = frozenset()


NO_GUARD = Guard()


class Values(Protocol):
    """The values of a region in a kernel under construction."""

    region: Region

    def value(self, slot: int, index: Index, guard: Guard = NO_GUARD) -> str:
        """The name of a slot's value at an index, in its compute dtype."""

    def cast_to(self, name: str, source: int, dtype: torch.dtype) -> str:
        """A value of a slot, in the compute dtype of `dtype`."""

    def condition(self, text: str, depends: frozenset[str]) -> str:
        """The name of a mask that depends on these indices of the iteration space."""


_COMPUTE = {
    torch.float64: "tl.float64", torch.float32: "tl.float32", torch.float16: "tl.float32",
    torch.bfloat16: "tl.float32", torch.int64: "tl.int64", torch.int32: "tl.int32", torch.int16: "tl.int16",
    torch.int8: "tl.int8", torch.uint8: "tl.uint8", torch.bool: "tl.int1",
}  # fmt: skip

TAKEN = frozenset(_COMPUTE)
"""The dtypes that kernels read and write."""


def compute_type(dtype: torch.dtype) -> str:
    """The Triton dtype in which values of a dtype are computed."""
    return _COMPUTE[dtype]


def converted(name: str, source: torch.dtype, target: torch.dtype) -> str:
    """A value of one dtype in the dtype in which another's values are computed."""
    before, after = compute_type(source), compute_type(target)
    if before == after:
        return name
    return f"({name} != 0)" if target is torch.bool else f"{name}.to({after})"
