"""Which dims of a tensor which axes shard, as a program states it."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.program.program import Program
from ...runtime.program.records import Input

Cuts = Mapping[int, tuple[str, ...]]
"""By dim: the axes that shard it, outermost first; axes of one rank are left out."""


def stated_cuts(program: Program, tensor: Input) -> Cuts:
    """Those of an input or a parameter of a program."""
    sizes = program.mesh.sizes
    cuts = {shard.dim: tuple(axis for axis in shard.axes if sizes.get(axis, 1) > 1) for shard in tensor.shards}
    return {dim: axes for dim, axes in cuts.items() if axes}


def cuts_text(cuts: Cuts) -> str:
    """For a person."""
    parts = [f"dim {dim} over {', '.join(axes)}" for dim, axes in sorted(cuts.items())]
    return " and ".join(parts) or "whole on every rank"
