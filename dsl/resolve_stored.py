"""Resolve `store` and `zero`: the stored placement of each parameter, beside the one that it is computed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .error import PlanCode, PlanError
from .plan import Plan
from .resolve import ParameterInfo, ParameterSharding, matches, numbered_dim, resolve_parameters
from .routing.experts import Move
from .shard import Dim, StoreParameters
from .zero import Zero


@dataclass(frozen=True)
class Storage:
    """What statements add to the computed placement of a parameter: `store` or `zero`, and `experts` that move."""

    dims: Mapping[str, int] = field(default_factory=dict)
    """The dim that each further axis shards; none where the parameter is stored as it is computed with."""
    statement: StoreParameters | Zero | None = None
    """The statement that decided: the last that matches."""


def resolve_stored_placements(plan: Plan, parameters: Sequence[ParameterInfo]) -> tuple[Mapping[str, int], ...]:
    """The stored placement of each parameter, by all statements about parameters: the dim that each axis shards.

    Axes that shard the same dim nest in this order; those of `store` and `zero` nest inside of those of `shard`.
    Raises the errors of `resolve_parameters` and `resolve_storage`.
    """
    computed = resolve_parameters(plan, parameters)
    stored = resolve_storage(plan, parameters, computed)
    return tuple({**sharding.dims, **storage.dims} for sharding, storage in zip(computed, stored, strict=True))


def resolve_storage(
    plan: Plan, parameters: Sequence[ParameterInfo], computed: Sequence[ParameterSharding]
) -> tuple[Storage, ...]:
    """What `store` and `zero` add to the `computed` placement of each parameter; the last that matches decides.

    Raises PlanError, for `store`, for a dim that a parameter does not have (E0115) and for an axis that shards the
    parameter already (E0112).
    """
    return tuple(_storage(plan, each, sharding) for each, sharding in zip(parameters, computed, strict=True))


def _storage(plan: Plan, parameter: ParameterInfo, computed: ParameterSharding) -> Storage:
    if not parameter.shape:
        return Storage()  # a number has no dim to cut
    if computed.experts is not None and computed.experts.move is Move.WEIGHTS:
        name = next(name for name in parameter.names if matches(computed.experts, name))
        sizes = dict(plan.mesh.axes)
        experts = computed.experts.cuts(name, parameter.shape, sizes, computed.dims.values())
        further = _further(plan, parameter, replace(computed, dims={**experts, **computed.dims}))
        return Storage({**experts, **further.dims}, further.statement)
    return _further(plan, parameter, computed)


def _further(plan: Plan, parameter: ParameterInfo, computed: ParameterSharding) -> Storage:
    for statement in reversed(plan.stored):
        name = next((name for name in parameter.names if matches(statement, name)), None)
        if name is None:
            continue
        if isinstance(statement, Zero):
            return Storage(statement.cuts(parameter.shape, computed.dims, dict(plan.mesh.axes)), statement)
        assert isinstance(statement.layout, Dim), "the grammar takes no role"
        dim = numbered_dim(statement.layout, statement, name, parameter.shape)
        _check_axes_are_new(statement, name, computed)
        return Storage(dict.fromkeys(statement.axes, dim), statement)
    return Storage()


def _check_axes_are_new(statement: StoreParameters, name: str, computed: ParameterSharding) -> None:
    for index, axis in enumerate(statement.axes):
        if axis in computed.dims:
            raise PlanError(
                PlanCode.AXIS_USED_TWICE,
                f'the axis "{axis}" shards "{name}" already: a parameter is stored over other axes than it is '
                "computed with",
                span=statement.places.axis(index),
                notes=(("it is sharded here", computed.span),),
                help="store it over an axis that no shard statement of it names",
            )
