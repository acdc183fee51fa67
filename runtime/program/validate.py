"""Validation of a program: its mesh, inputs, outputs and pipeline here, its functions in `validate_functions.py`.

The executor runs a valid program without further checks. Hashes are checked in `folder.py`, the types of JSON fields in
`reading/json_fields.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from ..reading.json_fields import Malformed
from .arguments import DTYPES
from .entries import (
    MAIN,
    MICROBATCH,
    Entry,
    entries,
    records_of_stage,
)
from .limits import check_limits
from .mesh import RankMesh
from .records import Function, Input, Output, Pipeline, Shard
from .validate_calls import require
from .validate_functions import FunctionValidator, require_axes
from .validate_types import check_kinds, check_state_memory

ENTRY = MAIN
INPUT_KINDS = frozenset({"parameter", "buffer", "state", "constant", "input", "random", "tangent"})
OUTPUT_KINDS = frozenset({"output", "gradient", "buffer", "state"})


def validate(
    mesh: RankMesh,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    functions: Mapping[str, Function],
    locations: int,
    pipeline: Pipeline | None = None,
) -> None:
    """Raise Malformed for the first thing that is wrong, or ProgramError E0305 for an unknown op."""
    require(len({name for name, _ in mesh.axes}) == len(mesh.axes), "manifest.json.mesh: an axis is listed twice")
    check_limits(mesh, inputs, outputs, functions, pipeline)
    names = (MAIN,) if pipeline is None else pipeline.entries
    for name in names:
        require(name in functions, f'program.json.functions: there is no "{name}"')
    if pipeline is not None:
        _check_pipeline(pipeline, mesh)
    for index, argument in enumerate(inputs):
        _tensor(argument, INPUT_KINDS, mesh, f"program.json.inputs[{index}]")
        _stages(argument, pipeline, f"program.json.inputs[{index}].stages")
    for index, result in enumerate(outputs):
        _tensor(result, OUTPUT_KINDS, mesh, f"program.json.outputs[{index}]")
        _unreduced(result, mesh, f"program.json.outputs[{index}].unreduced_over")
        _stages(result, pipeline, f"program.json.outputs[{index}].stages")
    _states(inputs, outputs, pipeline)
    FunctionValidator(functions, names, mesh, locations, pipeline).check()
    check_kinds(functions, names)
    check_state_memory(names, inputs, outputs, functions)
    named = {(argument.kind, argument.name) for argument in inputs}
    require(len(named) == len(inputs), "program.json.inputs: two inputs of one kind have the same name")
    if pipeline is None:
        _interface(functions[MAIN], inputs, outputs)
        return
    for stage, name in enumerate(names):
        _entry_signature(
            functions[name], name, len(records_of_stage(inputs, stage)), len(records_of_stage(outputs, stage))
        )
    for entry in entries(inputs, outputs, functions, pipeline):
        _tangents(entry, f"program.json.functions.{entry.name}")


def _states(inputs: Sequence[Input], outputs: Sequence[Output], pipeline: Pipeline | None) -> None:
    states = {argument.name: argument for argument in inputs if argument.kind == "state"}
    require(not states or pipeline is None, "program.json.inputs: a pipeline has no states")
    for index, output in enumerate(outputs):
        if output.kind == "state":
            path, state = f"program.json.outputs[{index}]", states.get(output.name)
            require(state is not None, f"{path}: there is no state '{output.name}'")
            assert state is not None
            same = (state.shape, state.dtype, state.shards) == (output.shape, output.dtype, output.shards)
            require(same, f"{path}: the new value of state '{output.name}' has another shape, dtype or placement")


def _tensor(tensor: Input | Output, kinds: frozenset[str], mesh: RankMesh, path: str) -> None:
    require(tensor.kind in kinds, f"{path}.kind: '{tensor.kind}' is not one of {', '.join(sorted(kinds))}")
    require(tensor.dtype in DTYPES, f"{path}.dtype: '{tensor.dtype}' is not a dtype")
    require(all(n >= 0 for n in tensor.shape), f"{path}.shape: {list(tensor.shape)} has a negative extent")
    axes = list(chain.from_iterable(shard.axes for shard in tensor.shards))
    require(len(set(axes)) == len(axes), f"{path}.shards: an axis shards '{tensor.name}' twice")
    dims = [shard.dim for shard in tensor.shards]
    require(len(set(dims)) == len(dims), f"{path}.shards: a dim is sharded twice")
    if tensor.kind == "random":
        require((tensor.shape, tensor.dtype) == ((2,), "int64"), f"{path}: an RNG state is two int64 numbers")
        require(not tensor.shards, f"{path}.shards: an RNG state is replicated, not sharded")
    stored_over = tensor.stored_over if isinstance(tensor, Input) else ()
    unsharded = sorted({*stored_over} - {*axes})
    require(not unsharded, f"{path}.stored_over: no dim of '{tensor.name}' is sharded over '{', '.join(unsharded)}'")
    require(len({*stored_over}) == len(stored_over), f"{path}.stored_over: an axis is listed twice")
    for index, shard in enumerate(tensor.shards):
        _shard(shard, tensor.shape, mesh, f"{path}.shards[{index}]")


def _unreduced(output: Output, mesh: RankMesh, path: str) -> None:
    require(not output.unreduced_over or output.kind == "gradient", f"{path}: only gradients may be left unreduced")
    require_axes(list(output.unreduced_over), mesh, path)
    sharding = set(chain.from_iterable(shard.axes for shard in output.shards))
    require(not sharding & set(output.unreduced_over), f"{path}: an axis also shards '{output.name}'")


def _shard(shard: Shard, shape: tuple[int, ...], mesh: RankMesh, path: str) -> None:
    require_axes(list(shard.axes), mesh, f"{path}.axes")
    require(0 <= shard.dim < len(shape), f"{path}.dim: {shard.dim} is not a dim of {list(shape)}")
    require(shard.extent == shape[shard.dim], f"{path}.extent: {shard.extent}, but the shape is {list(shape)}")
    chunk = -(-shard.extent // mesh.size(shard.axes))
    require(shard.chunk == chunk, f"{path}.chunk: {shard.chunk}, expected {chunk}")
    ranks = mesh.size(shard.axes)
    if shard.blocks:
        fits = sum(shard.blocks) == shard.extent and all(block > 0 and not block % ranks for block in shard.blocks)
        message = f"{list(shard.blocks)} are no parts of {shard.extent} elements that {ranks} ranks divide"
        require(fits, f"{path}.blocks: {message}")


def _check_pipeline(pipeline: Pipeline, mesh: RankMesh) -> None:
    path = "program.json.pipeline"
    require(pipeline.axis in mesh.sizes, f"{path}.axis: '{pipeline.axis}' is not an axis of the mesh")
    require(MICROBATCH not in mesh.sizes, f"manifest.json.mesh: '{MICROBATCH}' is reserved for the microbatch axis")
    require(pipeline.microbatches > 0, f"{path}.microbatches: expected at least 1, found {pipeline.microbatches}")
    size = mesh.sizes[pipeline.axis]
    require(len(set(pipeline.entries)) == size, f"{path}.entries: expected {size} functions, one for each stage")
    require(len(pipeline.entries) == size, f"{path}.entries: a function is listed twice")


def _stages(record: Input | Output, pipeline: Pipeline | None, path: str) -> None:
    if record.stages is None:
        return
    if pipeline is None:
        raise Malformed(f"{path}: the program has no pipeline")
    known = all(0 <= stage < len(pipeline.entries) for stage in record.stages)
    require(known, f"{path}: {list(record.stages)} are not coordinates on '{pipeline.axis}'")
    require(len(set(record.stages)) == len(record.stages), f"{path}: a coordinate is listed twice")
    require(bool(record.stages) or isinstance(record, Input), f"{path}: no stage returns '{record.name}'")
    require(record.stages == tuple(sorted(record.stages)), f"{path}: {list(record.stages)} are not in ascending order")


def _entry_signature(entry: Function, name: str, inputs: int, outputs: int) -> None:
    path = f"program.json.functions.{name}"
    require(len(entry.arguments) == inputs, f"{path}.arguments: expected {inputs} inputs, found {len(entry.arguments)}")
    require(len(entry.results) == outputs, f"{path}.results: expected {outputs} outputs, found {len(entry.results)}")


def _tangents(entry: Entry, path: str) -> None:
    tangents = [argument for argument in entry.inputs if argument.kind == "tangent"]
    require(len(tangents) < 2, f"{path}.arguments: a pipeline takes one tangent, found {len(tangents)}")
    require(all(argument.shape == () for argument in tangents), f"{path}.arguments: a pipeline's tangent is one number")


def _interface(main: Function, inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
    slots = [argument.slot for argument in inputs]
    require(len(set(slots)) == len(slots), "program.json.inputs: two inputs share a slot")
    require(set(slots) == set(main.arguments), f'program.json.inputs: their slots are not the arguments of "{MAIN}"')
    tangents = any(argument.kind == "tangent" for argument in inputs)
    require(not tangents or main.backward_at is not None, "program.json: it takes tangents but has no backward")
    forward_end = len(main.code) if main.backward_at is None else main.backward_at
    after_forward = _live_after(main, {arg.slot for arg in inputs if arg.kind != "tangent"}, forward_end)
    after_backward = _live_after(main, set(main.arguments), len(main.code))
    for index, output in enumerate(outputs):
        is_gradient = output.kind == "gradient"
        is_set = output.slot in (after_backward if is_gradient else after_forward)
        when = "backward" if is_gradient else "forward"
        path = f"program.json.outputs[{index}]"
        require(is_set, f"{path}: slot {output.slot} of '{output.name}' is not set after the {when}")


def _live_after(function: Function, live: set[int], end: int) -> set[int]:
    for instruction in function.code[:end]:
        live.update(instruction.writes())
        live.difference_update(instruction.free)
    return live
