"""`axes ep = dp, cp`: a name for several axes of the mesh, outermost first.

Other statements may use the name in place of the axes. A plan replaces it when it is made, so that whoever reads a plan
meets axes of the mesh only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lark import Token, Tree

from ..diagnostics import Span
from .attention import Attention
from .error import PlanCode, PlanError
from .mesh import Mesh
from .routing.experts import Experts
from .shard import ShardActivations, ShardBuffers, ShardInputs, ShardParameters, StoreParameters
from .source import Places, Source, tokens
from .spelling import did_you_mean, listed
from .zero import Zero

_Sharding = (
    ShardParameters | StoreParameters | ShardActivations | ShardInputs | ShardBuffers | Zero | Attention | Experts
)


@dataclass(frozen=True)
class NamedAxes:
    """An `axes` statement. Raises PlanError for an axis named twice (E0112).

    >>> print(NamedAxes("ep", ("dp", "cp")))
    axes ep = dp, cp
    """

    name: str
    axes: tuple[str, ...]
    """Axes of the mesh, outermost first."""
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement and its axes; `layout` is that of the name."""

    def __post_init__(self) -> None:
        for index, axis in enumerate(self.axes):
            if axis in self.axes[:index]:
                message = f'"{self.name}" names the axis "{axis}" twice'
                raise PlanError(
                    PlanCode.AXIS_USED_TWICE, message, span=self.places.axis(index), help=f'name "{axis}" once'
                )

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def __str__(self) -> str:
        return f"axes {self.name} = {', '.join(self.axes)}"


def check_names(named: Sequence[NamedAxes], mesh: Mesh) -> None:
    """Raise PlanError for a name that is taken (E0109), and for axes that the mesh lacks (E0107)."""
    places: dict[str, Span | None] = {axis: mesh.span_of(axis) for axis in mesh.names}
    for statement in named:
        if statement.name in places:
            raise PlanError(
                PlanCode.DUPLICATE_AXIS,
                f'there are two axes named "{statement.name}"',
                span=statement.places.layout,
                notes=(("first declared here", places[statement.name]),),
                help="give one of them another name",
            )
        places[statement.name] = statement.places.layout
        for index, axis in enumerate(statement.axes):
            if axis not in mesh.names:
                raise PlanError(
                    PlanCode.UNKNOWN_AXIS,
                    f'the mesh has no axis "{axis}"',
                    span=statement.places.axis(index),
                    expected=f"expected {listed(mesh.names)}: a name stands for axes of the mesh",
                    notes=(("the mesh is declared here", mesh.span),),
                    help=did_you_mean(axis, mesh.names),
                )


def with_axes_of_mesh(statement: _Sharding, axes_by_name: Mapping[str, Sequence[str]]) -> _Sharding:
    """The statement with every name replaced by its axes. Raises PlanError E0112 where it then has an axis twice."""
    if isinstance(statement, Zero) and not axes_by_name.keys().isdisjoint(statement.within):
        within = (axis for name in statement.within for axis in axes_by_name.get(name, (name,)))
        statement = replace(statement, within=tuple(dict.fromkeys(within)))
    if axes_by_name.keys().isdisjoint(statement.axes):
        return statement
    spans = [statement.places.axis(index) for index in range(len(statement.axes))]
    replaced = [
        (axis, span)
        for name, span in zip(statement.axes, spans, strict=True)
        for axis in axes_by_name.get(name, (name,))
    ]
    known = tuple(span for _, span in replaced if span is not None)
    return replace(statement, axes=tuple(axis for axis, _ in replaced), places=replace(statement.places, axes=known))


def read_axes(tree: Tree[Token], source: Source) -> NamedAxes:
    """The value of an `axes` statement. Raises PlanError as the value does."""
    keyword, name, *axes = tokens(tree, "AXES", "AXIS")
    places = Places(
        source.span_of(keyword, axes[-1]), source.span_of(name), tuple(source.span_of(axis) for axis in axes)
    )
    return NamedAxes(str(name), tuple(str(axis) for axis in axes), places)
