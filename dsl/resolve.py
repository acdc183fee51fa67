"""Resolve the globs of a plan's `shard` statements: which dim of each parameter each axis shards.

`resolve_stored.py` adds what `store` and `zero` say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ..diagnostics import Span
from . import globs
from .error import PlanCode, PlanError
from .plan import Plan
from .routing.experts import Experts, Move, names_list
from .shard import Dim, Role, ShardParameters, StoreParameters, layout_dim
from .spelling import listed, range_text, shape_text
from .zero import Zero


class OwnerKind(StrEnum):
    """The kind of module that owns a parameter; it decides which dim a role means."""

    LINEAR = "linear"
    """weight (out, in), bias (out,)"""
    LINEAR_TRANSPOSED = "linear_transposed"
    """weight (in, out), bias (out,); as in GPT-2"""
    EMBEDDING = "embedding"
    """weight (vocab, hidden)"""
    OTHER = "other"


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter of the model. `aliases` are the other names of a tied one."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    owner_kind: OwnerKind

    @property
    def names(self) -> tuple[str, ...]:
        """All names without duplicates, `name` first."""
        return tuple(dict.fromkeys((self.name, *self.aliases)))


@dataclass(frozen=True)
class ParameterSharding:
    """The dim of a parameter that each axis shards; other axes replicate it."""

    name: str
    dims: Mapping[str, int]
    """The dim (not negative) by axis. Axes that shard the same dim nest in this order, the outermost first."""
    span: Span | None = None
    """The statement that decided; None if none matched, or if it was built in Python."""
    decided_by: tuple[ShardParameters, ...] = field(default=(), compare=False, repr=False)
    """The deciding statement of each matched name; all give the same dims."""
    names: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """All names of the parameter."""
    experts: Experts | None = field(default=None, compare=False, repr=False)
    """The statement that cuts its experts, or how they are stored."""


_DIMS: dict[tuple[OwnerKind, Role, str], int | None] = {
    (OwnerKind.LINEAR, Role.COLUMNS, "weight"): 0,
    (OwnerKind.LINEAR, Role.COLUMNS, "bias"): 0,
    (OwnerKind.LINEAR, Role.ROWS, "weight"): 1,
    (OwnerKind.LINEAR, Role.ROWS, "bias"): None,
    (OwnerKind.LINEAR, Role.VOCAB, "weight"): 0,
    (OwnerKind.LINEAR, Role.VOCAB, "bias"): 0,
    (OwnerKind.LINEAR_TRANSPOSED, Role.COLUMNS, "weight"): 1,
    (OwnerKind.LINEAR_TRANSPOSED, Role.COLUMNS, "bias"): 0,
    (OwnerKind.LINEAR_TRANSPOSED, Role.ROWS, "weight"): 0,
    (OwnerKind.LINEAR_TRANSPOSED, Role.ROWS, "bias"): None,
    (OwnerKind.LINEAR_TRANSPOSED, Role.VOCAB, "weight"): 1,
    (OwnerKind.LINEAR_TRANSPOSED, Role.VOCAB, "bias"): 0,
    (OwnerKind.EMBEDDING, Role.VOCAB, "weight"): 0,
}
"""The dim that a role means for the weight (2 dims) or bias (1 dim) of each kind of owner; None: replicated."""

_RANKS = {"weight": 2, "bias": 1}
_KINDS = {
    OwnerKind.LINEAR: "a linear layer",
    OwnerKind.LINEAR_TRANSPOSED: "a transposed linear layer",
    OwnerKind.EMBEDDING: "an embedding",
    OwnerKind.OTHER: "neither a linear layer nor an embedding",
}


def resolve_parameters(plan: Plan, parameters: Sequence[ParameterInfo]) -> tuple[ParameterSharding, ...]:
    """The sharding of every parameter, in the given order. The last statement that matches decides.

    Raises PlanError for a pattern that matches nothing (E0114), a dim that a parameter does not have (E0115), a role
    that does not suit a parameter (E0116), and for different shardings of one tied parameter (E0117).
    """
    _check_all_match(plan, parameters)
    return tuple(_with_experts(plan, parameter, _resolve(plan, parameter)) for parameter in parameters)


def _owner(name: str) -> str:
    """The name of the module that owns the parameter; empty for the model itself."""
    return name.rpartition(".")[0]


def _check_all_match(plan: Plan, parameters: Sequence[ParameterInfo]) -> None:
    names = dict.fromkeys(name for parameter in parameters for name in parameter.names)
    known = dict.fromkeys(text for name in names for text in (name, _owner(name)) if text)
    for statement in (*plan.parameters, *plan.experts, *plan.stored):
        for index, pattern in enumerate(statement.only if isinstance(statement, Zero) else statement.patterns):
            is_list = isinstance(statement, Experts) and any(names_list(pattern, name) for name in names)
            if not is_list and not any(globs.matches(pattern, text) for text in known):
                raise _no_match(pattern, statement.places.pattern(index), tuple(known))


def _no_match(pattern: str, span: Span | None, known: tuple[str, ...]) -> PlanError:
    near = [f'"{text}"' for text in globs.nearest_patterns(pattern, known)]
    if near:
        help = f"did you mean {listed(near)}?"
    else:
        help = f'names in this model look like "{max(known, key=len)}"' if known else "the model has no parameters"
    message = f'"{pattern}" matches no parameter and no module that owns one'
    return PlanError(PlanCode.NO_MATCH, message, span=span, help=help)


def _resolve(plan: Plan, parameter: ParameterInfo) -> ParameterSharding:
    """The sharding of one parameter; all of its matched names must agree."""
    decided: list[tuple[str, ShardParameters, dict[str, int]]] = []
    for name in parameter.names:
        statement = _last_match(plan, name)
        if statement is not None:
            decided.append((name, statement, _dims(statement, name, parameter)))
    if not decided:
        return ParameterSharding(parameter.name, {}, names=parameter.names)
    for other in decided[1:]:
        if [*other[2].items()] != [*decided[0][2].items()]:
            raise _disagreement(decided[0], other)
    _, statement, dims = decided[0]
    statements = tuple(statement for _, statement, _ in decided)
    return ParameterSharding(parameter.name, dims, statement.span, statements, parameter.names)


def _with_experts(plan: Plan, parameter: ParameterInfo, sharding: ParameterSharding) -> ParameterSharding:
    """What the last `experts` statement that matches adds to a sharding: its axes cut experts, outside of others.

    Where weights move, experts are computed whole, and their axes cut how they are stored (`resolve_stored.py`).

    Raises PlanError E0140 where ranks cannot share the experts, and E0112 for an axis that `shard` gave a dim.
    """
    for statement in reversed(plan.experts):
        name = next((name for name in parameter.names if matches(statement, name)), None)
        if name is None:
            continue
        cut = statement.cuts(name, parameter.shape, dict(plan.mesh.axes), sharding.dims.values())
        twice = next((index for index, axis in enumerate(statement.axes) if axis in sharding.dims), None)
        if twice is not None:
            raise PlanError(
                PlanCode.AXIS_USED_TWICE,
                f'the axis "{statement.axes[twice]}" shards "{name}" already',
                span=statement.places.axis(twice),
                notes=(("it is sharded here", sharding.span),),
                help="leave one of the two statements out",
            )
        computed = sharding.dims if statement.move is Move.WEIGHTS else {**cut, **sharding.dims}
        return replace(sharding, dims=computed, experts=statement)
    return sharding


def _last_match(plan: Plan, name: str) -> ShardParameters | None:
    for statement in reversed(plan.parameters):
        if matches(statement, name):
            return statement
    return None


def experts_of(plan: Plan, name: str) -> Experts | None:
    """The `experts` statement that decides for a parameter of this name: the last that matches."""
    return next((statement for statement in reversed(plan.experts) if matches(statement, name)), None)


def matches(statement: ShardParameters | StoreParameters | Zero | Experts, name: str) -> bool:
    """Whether a pattern of the statement matches a parameter's name, its owner's, or that of its list of experts."""
    if isinstance(statement, Experts) and statement.is_of_list(name):
        return True
    return any(globs.matches(glob, name) or globs.matches(glob, _owner(name)) for glob in statement.patterns)


def _dims(statement: ShardParameters, name: str, parameter: ParameterInfo) -> dict[str, int]:
    """By axis, the dim that the statement shards of a parameter it matched by `name`."""
    layout = statement.layout
    dim = (
        numbered_dim(layout, statement, name, parameter.shape)
        if isinstance(layout, Dim)
        else _by_role(layout, statement, name, parameter)
    )
    if dim is None:
        return {}
    return dict.fromkeys(statement.axes, dim)


def numbered_dim(layout: Dim, statement: ShardParameters | StoreParameters, name: str, shape: tuple[int, ...]) -> int:
    """A dim by its number. Raises PlanError E0115 where a parameter that the statement matches by `name` lacks it."""
    dim = layout_dim(layout, len(shape))
    if dim is not None:
        return dim
    raise PlanError(
        PlanCode.DIM_OUT_OF_RANGE,
        f'"{name}" {shape_text(shape)} has no dim {layout.number}',
        span=statement.places.layout,
        expected=f"expected {range_text(len(shape))}",
        help=_narrower(statement, name),
    )


def _narrower(statement: ShardParameters | StoreParameters, name: str) -> str:
    """The help for a matched parameter that the statement cannot shard."""
    if isinstance(statement, StoreParameters):
        return f'give a dim that it has in a later statement, such as: store "{name}" dim 0 over {statement.axes[0]}'
    if any(globs.matches(glob, name) for glob in statement.patterns):
        return "exclude it from the pattern, or override it in a later statement"
    return "match the parameter's own name, not that of its module"


def _by_role(role: Role, statement: ShardParameters, name: str, parameter: ParameterInfo) -> int | None:
    part = name.rpartition(".")[2]
    key = (parameter.owner_kind, role, part)
    if key in _DIMS and _RANKS[part] == len(parameter.shape):
        return _DIMS[key]
    kind, has_rank = parameter.owner_kind, _RANKS.get(part) == len(parameter.shape)
    suited = [other for other in ShardParameters.roles if has_rank and _DIMS.get((kind, other, part)) is not None]
    raise PlanError(
        PlanCode.UNSUITED_ROLE,
        f'"{name}" {shape_text(parameter.shape)} belongs to {_KINDS[parameter.owner_kind]}: it has no {role}',
        span=statement.places.layout,
        expected=f"expected {listed([*suited, 'dim N'])}",
        help=f'give the dim, such as: shard "{name}" dim 0 over {", ".join(statement.axes)}',
    )


def _disagreement(
    first: tuple[str, ShardParameters, dict[str, int]], second: tuple[str, ShardParameters, dict[str, int]]
) -> PlanError:
    name, statement, dims = first
    alias, alias_statement, alias_dims = second
    return PlanError(
        PlanCode.ALIASES_DISAGREE,
        f'"{alias}" and "{name}" are one parameter, but the first is {_sharding_text(alias_dims)} '
        f"and the second {_sharding_text(dims)}",
        span=alias_statement.span,
        notes=((f'"{name}" is decided here', statement.span),),
        help="give both names the same sharding, or drop one statement",
    )


def _sharding_text(dims: Mapping[str, int]) -> str:
    by_dim = dict.fromkeys(dims.values())
    cuts = [f"dim {dim} over {', '.join(axis for axis in dims if dims[axis] == dim)}" for dim in by_dim]
    return f"sharded on {' and '.join(cuts)}" if cuts else "replicated"
