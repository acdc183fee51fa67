"""The generated kernels as an implementation of the kind `region`, for the target cuda."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ...runtime.implementations.registry import Implementation, KindFunction
from .generate import generate
from .kernels import CompiledRegion, compile_region
from .region import Declined, Region

KIND = "region"
"""What the pass `fuse-regions` calls the functions that it outlines."""


def default_folder() -> Path:
    """Where sources and choices of block sizes are kept: `STRETTO_KERNELS`, else under the user's cache."""
    stated = os.environ.get("STRETTO_KERNELS")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(stated) if stated else home / "stretto" / "kernels"


@dataclass
class RegionKernel:
    """Runs a region; the kernel is loaded at the first call, which needs Triton."""

    region: Region
    target: str
    folder: Callable[[], Path] = default_folder
    _compiled: CompiledRegion | None = field(default=None, repr=False)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._compiled is None:
            self._compiled = compile_region(self.region, self.target, self.folder())
        return self._compiled(*inputs)


def build(function: KindFunction, target: str) -> RegionKernel | None:
    """The kernel of a region; None where the generator declines it."""
    region = region_of(function)
    return None if isinstance(region, str) else RegionKernel(region, target)


def region_of(function: KindFunction) -> Region | str:
    """The region that a function holds, or why no kernel computes it."""
    types = {slot: type_ for slot, type_ in enumerate(function.types) if type_ is not None}
    region = Region(function.body.arguments, function.body.results, function.body.code, types)
    try:
        generate(region, KIND)
    except Declined as reason:
        return str(reason)
    return region


def why_not(function: KindFunction, target: str) -> str:
    """Why no kernel computes a region; empty where one does."""
    region = region_of(function)
    return region if isinstance(region, str) else ""


def workspace(function: KindFunction, target: str) -> int:
    """Copies of arguments that are not contiguous: at most all of them (bytes)."""
    return sum(operand.bytes for operand in function.operands)


TRITON_KERNELS = Implementation("Stretto's Triton kernels", (KIND,), ("cuda",), build, workspace, why_not)
"""Taken by `stretto.register_implementation`; a region that no kernel computes runs its body."""
