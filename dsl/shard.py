"""`shard`: which dim of which tensors is sharded over which axes of the mesh.

shard "*.q_proj", "*.k_proj" columns over tp     parameters, by glob
store "*" dim 0 over dp                          the stored placement of parameters, by glob
shard activations tokens over tp                 the residual stream between blocks
shard inputs batch over dp                       the user's inputs
shard inputs "x", "y" batch over dp              the inputs that are the batch, by glob
shard inputs "table" whole                       an input that is no part of the batch
shard buffers "*.keys" dim 1 over tp             buffers, by glob
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from lark import Token, Tree

from ..diagnostics import Span
from . import globs
from .error import PlanCode, PlanError, check_axes_differ, check_patterns
from .mesh import read_number
from .source import Places, Source, tokens
from .spelling import did_you_mean, listed, range_text, shortened

MAX_DIMS = 64
"""The most dims of a tensor."""


class Role(StrEnum):
    """A dim by its meaning."""

    COLUMNS = "columns"
    """The output features of a linear layer."""
    ROWS = "rows"
    """The input features of a linear layer; its bias is replicated."""
    VOCAB = "vocab"
    """The vocabulary of an embedding or of the head."""
    TOKENS = "tokens"
    """The last dim but one of the residual stream (batch, tokens, hidden)."""
    BATCH = "batch"
    """The first dim of an input."""
    WHOLE = "whole"
    """No dim of an input that the statement names: it is no part of the batch, however many rows it has."""


@dataclass(frozen=True)
class Dim:
    """A dim by its number; negative numbers count from the end."""

    number: int

    def __str__(self) -> str:
        return f"dim {self.number}"


Layout = Role | Dim
"""Which dim a statement shards."""


def layout_dim(layout: Layout, rank: int) -> int | None:
    """The dim (0 <= dim < rank) of an input or activation of `rank` dims; None if it has no such dim."""
    number = {Role.BATCH: 0, Role.TOKENS: -2}.get(layout) if isinstance(layout, Role) else layout.number
    if number is None or not -rank <= number < rank:
        return None
    return number % rank


class Sharding:
    """The base of `shard` and `store` statements: the dim, the axes that shard it, and source spans."""

    subject: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]]
    layout: Layout
    axes: tuple[str, ...]
    places: Places

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def _check(self, *, has_axes: bool = True) -> None:
        layout, places = self.layout, self.places
        if isinstance(layout, Role) and layout not in self.roles:
            raise _unknown_role(layout, type(self), places.layout)
        if isinstance(layout, Dim) and not -MAX_DIMS <= layout.number < MAX_DIMS:
            message = f'"{layout}" is out of range'
            expected = f"expected {range_text(MAX_DIMS)}"
            raise PlanError(PlanCode.DIM_OUT_OF_RANGE, message, span=places.layout, expected=expected)
        if has_axes and not self.axes:
            raise PlanError(PlanCode.SYNTAX, f"the statement that shards {self.subject} has no axis", span=self.span)
        check_axes_differ(self.axes, places)


@dataclass(frozen=True)
class _ParameterStatement(Sharding):
    """A statement about the parameters whose name, or whose module's name, a pattern matches."""

    keyword: ClassVar[str]
    patterns: tuple[str, ...]
    layout: Layout
    axes: tuple[str, ...]
    places: Places = field(default=Places(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.patterns:
            raise PlanError(PlanCode.BAD_PATTERN, f"the statement that {self.keyword}s parameters has no pattern")
        check_patterns(self.patterns, self.places)
        self._check()

    def __str__(self) -> str:
        return f"{self.keyword} {_quoted(self.patterns)} {self.layout} over {', '.join(self.axes)}"


@dataclass(frozen=True)
class ShardParameters(_ParameterStatement):
    """Shard the parameters that a pattern matches, in both their placements: stored and computed.

    Raises PlanError for a bad pattern (E0113), a role that parameters do not have (E0106), an axis named twice (E0112).
    """

    keyword: ClassVar[str] = "shard"
    subject: ClassVar[str] = "parameters"
    roles: ClassVar[tuple[Role, ...]] = (Role.COLUMNS, Role.ROWS, Role.VOCAB)


@dataclass(frozen=True)
class StoreParameters(_ParameterStatement):
    """Shard the stored placement alone, of parameters, gradients and optimizer states; each use gathers what it needs.

    Raises PlanError as `ShardParameters` does.

    >>> print(StoreParameters(("*",), Dim(0), ("dp",)))
    store "*" dim 0 over dp
    """

    keyword: ClassVar[str] = "store"
    subject: ClassVar[str] = "stored parameters"
    roles: ClassVar[tuple[Role, ...]] = ()


@dataclass(frozen=True)
class ShardBuffers(_ParameterStatement):
    """Shard the buffers that a pattern matches, such as a cache. Raises PlanError as `ShardParameters` does.

    >>> print(ShardBuffers(("*.keys",), Dim(1), ("tp",)))
    shard buffers "*.keys" dim 1 over tp
    """

    keyword: ClassVar[str] = "shard"
    subject: ClassVar[str] = "buffers"
    roles: ClassVar[tuple[Role, ...]] = ()

    def covers(self, name: str) -> bool:
        """Whether a pattern names the buffer."""
        return any(globs.matches(pattern, name) for pattern in self.patterns)

    def __str__(self) -> str:
        return f"shard {self.subject} {_quoted(self.patterns)} {self.layout} over {', '.join(self.axes)}"


@dataclass(frozen=True)
class ShardActivations(Sharding):
    """Shard the residual stream between blocks. Raises PlanError E0106, E0112."""

    subject: ClassVar[str] = "activations"
    roles: ClassVar[tuple[Role, ...]] = (Role.TOKENS,)
    layout: Layout
    axes: tuple[str, ...]
    places: Places = field(default=Places(), compare=False, repr=False)

    def __post_init__(self) -> None:
        self._check()

    def __str__(self) -> str:
        return f"shard {self.subject} {self.layout} over {', '.join(self.axes)}"


@dataclass(frozen=True)
class ShardInputs(Sharding):
    """Shard the model's inputs, all or those that a pattern names: data parallelism, or any other dim of them.

    Raises PlanError for a bad pattern (E0113), a role that inputs do not have (E0106), an axis named twice (E0112).

    >>> print(ShardInputs(Role.WHOLE, (), patterns=("table",)))
    shard inputs "table" whole
    """

    subject: ClassVar[str] = "inputs"
    roles: ClassVar[tuple[Role, ...]] = (Role.BATCH, Role.WHOLE)
    layout: Layout
    axes: tuple[str, ...]
    places: Places = field(default=Places(), compare=False, repr=False)
    patterns: tuple[str, ...] = ()
    """Globs of the inputs' names; empty: all inputs that are the batch."""

    def __post_init__(self) -> None:
        check_patterns(self.patterns, self.places)
        self._check(has_axes=not (self.patterns and isinstance(self.layout, Role)))
        if self.layout is Role.WHOLE and (not self.patterns or self.axes):
            found = f"over {', '.join(self.axes)}" if self.patterns else "of all inputs"
            raise PlanError(
                PlanCode.UNKNOWN_ROLE,
                f'inputs cannot be "whole" {found}',
                span=self.places.layout,
                expected="expected the names of the inputs that are no part of the batch, and no axis",
                help='write, for example: shard inputs "table" whole',
            )

    def covers(self, name: str) -> bool:
        """Whether a pattern names the input."""
        return any(globs.matches(pattern, name) for pattern in self.patterns)

    def __str__(self) -> str:
        names = f" {_quoted(self.patterns)}" if self.patterns else ""
        axes = f" over {', '.join(self.axes)}" if self.axes else ""
        return f"shard {self.subject}{names} {self.layout}{axes}"


def _quoted(patterns: tuple[str, ...]) -> str:
    return ", ".join(f'"{pattern}"' for pattern in patterns)


def _unknown_role(word: str, statement: type[Sharding], span: Span | None) -> PlanError:
    return PlanError(
        PlanCode.UNKNOWN_ROLE,
        f'{statement.subject} have no role "{shortened(word)}"',
        span=span,
        expected=f"expected {listed([*statement.roles, 'dim N'])}",
        help=did_you_mean(word, [*statement.roles, "dim"]),
    )


def _places(
    source: Source, keyword: Token, layout: Sequence[Token], axes: Sequence[Token], named: Sequence[Token]
) -> Places:
    return Places(
        statement=source.span_of(keyword, (axes or layout)[-1]),
        layout=source.span_of(layout[0], layout[-1]),
        axes=tuple(source.span_of(axis) for axis in axes),
        patterns=tuple(source.span_of(pattern) for pattern in named),
    )


def read_store(tree: Tree[Token], source: Source) -> StoreParameters:
    """The value of a `store` statement. Raises PlanError as the value does."""
    keyword, *named = tokens(tree, "STORE", "PATTERN")
    layout, axes = tokens(tree, "DIM", "NUMBER"), tokens(tree, "AXIS")
    places = _places(source, keyword, layout, axes, named)
    dim = _read_layout(layout, StoreParameters, places)
    return StoreParameters(tuple(str(p[1:-1]) for p in named), dim, tuple(str(axis) for axis in axes), places)


def read_shard(tree: Tree[Token], source: Source) -> ShardParameters | ShardActivations | ShardInputs | ShardBuffers:
    """The value of a `shard` statement. Raises PlanError for an unknown subject (E0105), and as the values do."""
    keyword, *subjects = tokens(tree, "SHARD", "SUBJECT", "PATTERN")
    layout, axes = tokens(tree, "ROLE", "DIM", "NUMBER"), tokens(tree, "AXIS")
    named = [token for token in subjects if token.type == "PATTERN"]
    places = _places(source, keyword, layout, axes, named)
    names, patterns = tuple(str(axis) for axis in axes), tuple(str(pattern[1:-1]) for pattern in named)
    if subjects[0].type == "PATTERN":
        return ShardParameters(patterns, _read_layout(layout, ShardParameters, places), names, places)
    if subjects[0] == ShardBuffers.subject:
        return ShardBuffers(patterns, _read_layout(layout, ShardBuffers, places), names, places)
    if subjects[0] == ShardInputs.subject:
        return ShardInputs(_read_layout(layout, ShardInputs, places), names, places, patterns)
    if subjects[0] != ShardActivations.subject:
        raise _unknown_subject(subjects[0], source.span_of(subjects[0]))
    if named:
        raise _named_activations(named[0], source)
    return ShardActivations(_read_layout(layout, ShardActivations, places), names, places)


def _named_activations(pattern: Token, source: Source) -> PlanError:
    return PlanError(
        PlanCode.SYNTAX,
        f"unexpected pattern {shortened(pattern)}",
        span=source.span_of(pattern),
        expected="expected tokens or dim N: activations have no names",
        help="leave the names out: the statement is about the residual stream",
    )


def _read_layout(words: list[Token], statement: type[Sharding], places: Places) -> Layout:
    if words[0].type == "DIM":
        return Dim(read_number(words[1]))
    for role in statement.roles:
        if role == words[0]:
            return role
    raise _unknown_role(words[0], statement, places.layout)


def _unknown_subject(word: str, span: Span) -> PlanError:
    subjects = (ShardActivations.subject, ShardInputs.subject, ShardBuffers.subject)
    return PlanError(
        PlanCode.UNKNOWN_SUBJECT,
        f'cannot shard "{shortened(word)}"',
        span=span,
        expected=f"expected {listed([*subjects, 'a pattern in quotes'])}",
        help=did_you_mean(word, subjects) or f'for parameters by name, write "{word}" in quotes',
    )
