"""What one device computes of a batch whose microbatches stand alone: each by a forward of its own, then their mean.

Microbatch m takes the m-th part of the rows of each data rank: of D ranks and M microbatches those of
`x.unflatten(0, (D, M, -1))[:, m]`. Forwards follow each other, also in the numbers of their random draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..program.program import Program
from ..program.records import Reference
from .model_and_program import OneDevice


def forward(
    program: Program, reference: Reference, model: OneDevice, inputs: Mapping[int | None, Tensor]
) -> list[Tensor]:
    """The outputs for inputs by index: of one forward, or where microbatches stand alone, of them all."""
    turns = program.pipeline
    if turns is None or not turns.alone:
        return model.forward(inputs)
    ranks = data_ranks(program)
    rows = {each.index: each.shape for each in reference.inputs if each.kind == "input"}
    cut = {at for at, shape in rows.items() if at in inputs and inputs[at].shape != torch.Size(shape)}
    made = []
    for microbatch in range(turns.microbatches):
        parts = {at: _part(x, ranks, turns.microbatches, microbatch) if at in cut else x for at, x in inputs.items()}
        made.append(model.forward(parts))
    wanted = [each.shape for each in program.results_of_kind("output")]
    return [_together(parts, shape, ranks) for parts, shape in zip(zip(*made, strict=True), wanted, strict=True)]


def data_ranks(program: Program) -> int:
    """How many ranks share the rows of the batch: as many as those of the input that is shared by the most."""
    shards = [shard for each in program.of_kind("input") for shard in each.shards if shard.dim == 0]
    return max((program.mesh.size(shard.axes) for shard in shards), default=1)


def _part(rows: Tensor, ranks: int, count: int, microbatch: int) -> Tensor:
    return rows.reshape(ranks, count, -1, *rows.shape[1:])[:, microbatch].flatten(0, 1)


def _together(parts: Sequence[Tensor], shape: Sequence[int], ranks: int) -> Tensor:
    """The mean of numbers, the rows of parts behind each other on each data rank; what all have alike as it is."""
    first = parts[0]
    if first.dim() == 0 and first.is_floating_point():
        return torch.stack(list(parts)).mean()
    if first.shape == torch.Size(shape):
        return first
    return torch.cat([part.reshape(ranks, -1, *part.shape[1:]) for part in parts], 1).flatten(0, 1)
