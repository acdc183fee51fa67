"""How the dim is shared that an op communicates over inside."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.types import TensorType

Types = list[TensorType | None]
"""The local types of an op's results; None for one that is not computed."""


@dataclass(frozen=True)
class Shards:
    """The dim, over which axes it is sharded, how many entries a rank holds, how many there are in all."""

    dim: int
    axes: tuple[str, ...]
    chunk: int
    extent: int
