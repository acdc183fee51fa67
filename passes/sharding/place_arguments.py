"""Put a plan's mesh and placements on a module: on main's parameters and inputs, and where activations are sharded.

Before   func @main(%w: tensor<64x32xf32> {aten.argument = {name = "up.weight", owner = "linear"}})
After    func @main(%w: tensor<64x32xf32, {tp = "shard(0)"}> ..)    with  comm.mesh = [["dp", 2], ["tp", 2]]

A parameter gets the placement of the last `shard` statement that matches, else it is replicated; a `store` or `zero`
statement adds its axes, which `gather-parameters` takes away again for each use. Buffers are sharded as `shard buffers`
says. Inputs are sharded over the axes of the batch: those that the plan names as the batch, else all with as many rows
as the first. With a pipeline the mesh also gets the microbatch axis, last, which cuts the batch too. With
`per microbatch` the captured step is that of one microbatch, and `average-microbatches` adds the axis.
Needs: level `aten`, names in `aten.argument`.   Keeps: values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from ...diagnostics import Span, StrettoError
from ...dsl.pipeline import Pipeline
from ...dsl.plan import Plan
from ...dsl.resolve import OwnerKind, ParameterInfo, ParameterSharding, resolve_parameters
from ...dsl.resolve_stored import Storage, resolve_storage
from ...dsl.resolve_values import batch_inputs, resolve_activations, resolve_buffers, resolve_inputs, stated_role
from ...dsl.shard import Role
from ...dsl.zero import Zero
from ...ir.module import Level, Module, Record, argument_records, entry, refresh_type, set_argument_records
from ...ir.pipelined_module import MICROBATCH
from ...ir.placement import Mesh, Placement
from ...ir.types import TensorType, from_mlir, to_mlir
from ..activation_sharding import ActivationSharding
from ..base import Pass, Report
from ..layers.argument_types import pass_types_on
from ..plan_effects import Decisions


@dataclass(frozen=True)
class PlaceArguments(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "place-arguments"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    plan: Plan
    """The plan; its parameter, input and activation statements are used."""
    padded_inputs: str = ""
    """Comma-separated inputs that need not divide evenly: their ranks get padded chunks. Others are refused (E0401)."""

    def run(self, module: Module) -> Report:
        module.mesh = mesh = _mesh(self.plan)
        main = module.functions()["main"]
        records = argument_records(main)
        types = [from_mlir(a.type) for a in entry(main).arguments]
        shardings = _parameters(self.plan, records, types)
        parameters: dict[int, Mapping[str, int]] = {i: sharding.dims for i, sharding in shardings.items()}
        inputs = _input_dims(self.plan, records, types, self.padded_inputs.split(","))
        stored = _stored(self.plan, records, types, shardings)
        buffers = _buffers(self.plan, records, types)
        stored_dims = {i: {**parameters[i], **storage.dims} for i, storage in stored.items()}
        dims = {**parameters, **buffers, **inputs, **stored_dims}
        for i, argument in enumerate(entry(main).arguments):
            placement = Placement.of_shards(len(types[i].shape), dims.get(i, {}))
            argument.set_type(to_mlir(types[i].placed(placement, mesh)))
        refresh_type(main)
        pass_types_on(module)
        set_argument_records(main, [{**r, **_storage_record(stored.get(i))} for i, r in enumerate(records)])
        _activation_sharding(self.plan, records, types).store(module)
        per_microbatch = self.plan.pipeline is not None and self.plan.pipeline.per_microbatch
        replicated_inputs = [
            records[i]["name"]
            for i in _inputs(records)
            if stated_role(self.plan, records[i]["name"]) is not Role.WHOLE
            and (i not in inputs or not (inputs[i] or per_microbatch))
        ]
        decisions = Decisions(
            self.plan,
            tuple(shardings.values()),
            (*inputs.values(), *buffers.values()),
            {records[i]["name"]: storage for i, storage in stored.items()},
            tuple(replicated_inputs),
        )
        remarks = (*decisions.remarks(), *decisions.idle_axes())
        return Report(len(dims), remarks, decisions.effects())


def _mesh(plan: Plan) -> Mesh:
    """The plan's axes, then the microbatch axis if a pipeline cuts the batch."""
    pipeline = plan.pipeline
    microbatch_axes = () if pipeline is None or pipeline.per_microbatch else ((MICROBATCH, pipeline.microbatches),)
    return (*plan.mesh.axes, *microbatch_axes)


def _parameters(plan: Plan, records: list[Record], types: list[TensorType]) -> dict[int, ParameterSharding]:
    """The sharding of each parameter, by its index among the arguments."""
    indices = [i for i, record in enumerate(records) if record.get("kind") == "parameter"]
    infos = [_info(records[i], types[i]) for i in indices]
    return dict(zip(indices, resolve_parameters(plan, infos), strict=True))


def _info(record: Record, type_: TensorType) -> ParameterInfo:
    owner = OwnerKind(record.get("owner", "other"))
    return ParameterInfo(record["name"], tuple(record.get("aliases", ())), type_.shape, owner)


def _stored(
    plan: Plan, records: list[Record], types: list[TensorType], shardings: Mapping[int, ParameterSharding]
) -> dict[int, Storage]:
    """What `store` and `zero` add to the placement of each parameter, by its index among the arguments."""
    infos = [_info(records[i], types[i]) for i in shardings]
    return dict(zip(shardings, resolve_storage(plan, infos, list(shardings.values())), strict=True))


def _storage_record(storage: Storage | None) -> Record:
    """What an argument's record says of its storage: the axes, one gather a step, a scatter each microbatch.

    `within` are the axes over which a step gathers again and again, where it gathers once over others.
    """
    if storage is None or not storage.dims:
        return {}
    zero = storage.statement if isinstance(storage.statement, Zero) else None
    inner = [axis for axis in zero.within if axis in storage.dims] if zero is not None else []
    within = {"within": inner} if inner and len(inner) < len(storage.dims) else {}
    gather = {"gather": "once"} if zero is not None and zero.gathers_once else {}
    scatter = {"scatter": "each"} if zero is not None and zero.scatters_each else {}
    return {"stored": [*storage.dims], **within, **gather, **scatter}


def _buffers(plan: Plan, records: list[Record], types: list[TensorType]) -> dict[int, Mapping[str, int]]:
    """The sharded dims of buffers that statements name, by index among the arguments."""
    indices = {records[i]["name"]: i for i, record in enumerate(records) if record.get("kind") == "buffer"}
    if not plan.buffers:
        return {}
    resolved = resolve_buffers(plan, {name: types[i].shape for name, i in indices.items()})
    return {indices[name]: by_axis for name, by_axis in resolved.items()}


_Dims = Mapping[int, Mapping[str, int]]


def _input_dims(
    plan: Plan, records: list[Record], types: list[TensorType], padded: Sequence[str]
) -> dict[int, Mapping[str, int]]:
    """The sharded dim of each axis, by input: of those that are the batch, and of those that a statement names."""
    shapes = {records[i]["name"]: types[i].shape for i in _inputs(records)}
    batch = batch_inputs(plan, shapes)
    resolved = resolve_inputs(plan, shapes, batch)
    names = {i: records[i]["name"] for i in _inputs(records)}
    dims: _Dims = {i: resolved[name] for i, name in names.items() if name in batch or resolved[name]}
    for i, by_axis in dims.items():
        if names[i] not in padded or (plan.pipeline is not None and plan.pipeline.per_microbatch):
            _check_divides(plan, names[i], types[i].shape, by_axis)
    if plan.pipeline is None:
        return dict(dims)
    of_batch = {i: by_axis for i, by_axis in dims.items() if names[i] in batch}
    return {**dims, **_with_microbatches(plan, plan.pipeline, records, types, of_batch)}


def _with_microbatches(
    plan: Plan, pipeline: Pipeline, records: list[Record], types: list[TensorType], dims: _Dims
) -> dict[int, Mapping[str, int]]:
    """The sharded dims of inputs with the microbatch axis added. Raises E0402 where the batch does not divide."""
    span = pipeline.span_of("microbatches")
    if not dims:
        raise StrettoError("E0402", "the model has no input with a batch to cut into microbatches", span=span)
    if pipeline.per_microbatch:
        return dict(dims)
    for i, by_axis in dims.items():
        axes = [axis for axis, dim in by_axis.items() if dim == 0]
        ranks, rows, count = prod(dict(plan.mesh.axes)[axis] for axis in axes), types[i].shape[0], pipeline.microbatches
        if rows % (ranks * count):
            share = f", {rows / ranks:g} for each of {ranks} ranks over {', '.join(axes)}" if ranks > 1 else ""
            fitting = [n for n in range(1, rows // ranks + 1) if rows % (ranks * n) == 0]
            nearest = sorted(sorted(fitting, key=lambda n: abs(n - count))[:2])
            instead = (
                f", or take {' or '.join(map(str, nearest))} microbatch{'es' if nearest[-1] > 1 else ''}"
                if nearest
                else ""
            )
            raise StrettoError(
                "E0402",
                f'input "{records[i]["name"]}" has {rows} rows{share}, which {count} microbatches cannot share evenly',
                span=span,
                expected=f"expected a multiple of {ranks * count} rows",
                help=f"pass {_multiples(rows, ranks * count)} rows{instead}",
            )
    return {i: {**by_axis, MICROBATCH: 0} for i, by_axis in dims.items()}


def _check_divides(plan: Plan, name: str, shape: tuple[int, ...], by_axis: Mapping[str, int]) -> None:
    sizes = dict(plan.mesh.axes)
    for dim in set(by_axis.values()):
        axes = [axis for axis, d in by_axis.items() if d == dim]
        parts = prod(sizes[axis] for axis in axes)
        unit = "elements" if dim else "rows"
        if shape[dim] % parts:
            raise StrettoError(
                "E0401",
                f'input "{name}" has {shape[dim]} {unit} in dim {dim}, which {parts} ranks over {", ".join(axes)} '
                "cannot share evenly",
                span=_statement_of(plan, axes[0]),
                expected=f"a multiple of {parts}",
                help=f"pass {_multiples(shape[dim], parts)}, mark the dim dynamic, or make the axis smaller",
            )


def _multiples(extent: int, parts: int) -> str:
    """The nearest extents that divide into `parts`, as text."""
    below = extent // parts * parts
    return f"{below} or {below + parts}" if below else str(parts)


def _statement_of(plan: Plan, axis: str) -> Span | None:
    return next((s.span for s in plan.inputs if axis in s.axes), None)


def _activation_sharding(plan: Plan, records: list[Record], types: list[TensorType]) -> ActivationSharding:
    shapes = {records[i]["name"]: types[i].shape for i in _inputs(records)}
    leading = next((shapes[name][:2] for name in batch_inputs(plan, shapes) if len(shapes[name]) >= 2), None)
    leading = leading or next((shape[:2] for shape in shapes.values() if len(shape) >= 2), ())
    shards = tuple(resolve_activations(plan, 3).items()) if plan.activations else ()
    return ActivationSharding(shards, leading, "" if plan.pipeline is None else plan.pipeline.axis)


def _inputs(records: list[Record]) -> list[int]:
    return [i for i, record in enumerate(records) if record.get("kind") == "input"]
