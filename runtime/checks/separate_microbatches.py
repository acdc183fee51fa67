"""The single-device forward of a batch whose microbatches are separate: one forward for each, then their mean.

Of D data-parallel ranks and M microbatches, microbatch m has the rows `x.unflatten(0, (D, M, -1))[:, m]`. Each forward
advances the RNG state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..program.program import Program
from ..program.reference_records import Reference
from .capacity import capped
from .model_and_program import OneDevice


def forward(
    program: Program, reference: Reference, model: OneDevice, inputs: Mapping[int | None, Tensor]
) -> list[Tensor]:
    """The outputs for inputs by index: of one forward, or combined from one forward for each separate microbatch.

    Experts with a capacity drop rows, as the program's plan says.
    """
    with capped(program, model.parameters):
        return _forward(program, reference, model, inputs)


def _forward(
    program: Program, reference: Reference, model: OneDevice, inputs: Mapping[int | None, Tensor]
) -> list[Tensor]:
    pipeline = program.pipeline
    if pipeline is None or not pipeline.separate_microbatches:
        return model.forward(inputs)
    ranks = data_ranks(program)
    microbatch_shapes = {argument.index: argument.shape for argument in reference.inputs if argument.kind == "input"}
    sharded = {
        index
        for index, shape in microbatch_shapes.items()
        if index in inputs and inputs[index].shape != torch.Size(shape)
    }
    outputs_by_microbatch = []
    for microbatch in range(pipeline.microbatches):
        parts = {
            index: _part(x, ranks, pipeline.microbatches, microbatch) if index in sharded else x
            for index, x in inputs.items()
        }
        outputs_by_microbatch.append(model.forward(parts))
    global_shapes = [output.shape for output in program.results_of_kind("output")]
    return [
        _combined(parts, shape, ranks)
        for parts, shape in zip(zip(*outputs_by_microbatch, strict=True), global_shapes, strict=True)
    ]


def data_ranks(program: Program) -> int:
    """The number of data-parallel ranks: the most ranks over which dim 0 of an input is sharded."""
    shards = [shard for argument in program.of_kind("input") for shard in argument.shards if shard.dim == 0]
    return max((program.mesh.size(shard.axes) for shard in shards), default=1)


def _part(rows: Tensor, ranks: int, count: int, microbatch: int) -> Tensor:
    return rows.reshape(ranks, count, -1, *rows.shape[1:])[:, microbatch].flatten(0, 1)


def _combined(parts: Sequence[Tensor], shape: Sequence[int], ranks: int) -> Tensor:
    """One output: the mean of scalars; for each data rank the rows of its parts; an output without rows as it is."""
    first = parts[0]
    if first.dim() == 0 and first.is_floating_point():
        return torch.stack(list(parts)).mean()
    if first.shape == torch.Size(shape):
        return first
    return torch.cat([part.reshape(ranks, -1, *part.shape[1:]) for part in parts], 1).flatten(0, 1)
