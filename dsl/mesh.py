"""`mesh (dp=2, tp=2)`: the ranks as a grid with named axes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

from lark import Token, Tree

from ..diagnostics import Span
from .error import PlanCode, PlanError
from .source import Places, Source, tokens

MAX_AXES = 8
MAX_RANKS = 1 << 17
"""The most ranks of a mesh: a program of more is refused when it is loaded."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Mesh:
    """The axes with their sizes, in declared order; ranks are numbered row-major.

    Raises PlanError for fewer than 1 or more than 8 axes, too few or too many ranks (E0108), an axis named twice
    (E0109).

    >>> Mesh((("dp", 2), ("tp", 4))).size
    8
    """

    axes: tuple[tuple[str, int], ...]
    places: Places = field(default=Places(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.axes) <= MAX_AXES:
            message = f"the mesh has {len(self.axes)} axes"
            raise PlanError(
                PlanCode.BAD_MESH,
                message,
                span=self.places.axis(MAX_AXES),
                expected=f"expected 1 to {MAX_AXES} axes",
                help="make one axis of those that shard the same dims" if self.axes else "",
            )
        for index, (name, size) in enumerate(self.axes):
            self._check_axis(index, name, size)
        if self.size > MAX_RANKS:
            message = f"the mesh has {self.size} ranks"
            raise PlanError(PlanCode.BAD_MESH, message, span=self.span, expected=f"expected at most {MAX_RANKS}")

    def _check_axis(self, index: int, name: str, size: int) -> None:
        span = self.places.axis(index)
        if not _NAME.fullmatch(name):
            message = f'"{name}" is not a valid name of an axis'
            raise PlanError(PlanCode.BAD_MESH, message, span=span, expected="expected letters, digits and _")
        if not 1 <= size <= MAX_RANKS:
            message = f'the axis "{name}" has size {size}'
            raise PlanError(PlanCode.BAD_MESH, message, span=span, expected=f"expected 1 to {MAX_RANKS}")
        first = self.names.index(name)
        if first < index:
            raise PlanError(
                PlanCode.DUPLICATE_AXIS,
                f'the mesh has two axes named "{name}"',
                span=span,
                notes=(("first declared here", self.places.axis(first)),),
                help="give one of them another name",
            )

    @property
    def span(self) -> Span | None:
        return self.places.statement

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.axes)

    @property
    def size(self) -> int:
        """The number of ranks."""
        return prod(size for _, size in self.axes)

    def span_of(self, axis: str) -> Span | None:
        """Where the axis is declared."""
        return self.places.axis(self.names.index(axis))

    def __str__(self) -> str:
        return f"mesh ({', '.join(f'{name}={size}' for name, size in self.axes)})"


def read_mesh(tree: Tree[Token], source: Source) -> Mesh:
    """The value of a `mesh` statement; raises PlanError as `Mesh` does."""
    (keyword, end), names, sizes = tokens(tree, "MESH", "RPAR"), tokens(tree, "AXIS"), tokens(tree, "NUMBER")
    axes = tuple((str(name), read_number(size)) for name, size in zip(names, sizes, strict=True))
    spans = tuple(source.span_of(name, size) for name, size in zip(names, sizes, strict=True))
    return Mesh(axes, Places(source.span_of(keyword, end), axes=spans))


def read_number(token: Token) -> int:
    """The integer that a token spells; 10^12, which every range excludes, if it has too many digits."""
    return int(token) if len(token) <= 12 else 10**12
