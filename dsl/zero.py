"""`zero 3 over dp { from 4KB }`: parameters, gradients and optimizer states are stored in parts (ZeRO, FSDP).

The stored placement is the same at every level: each parameter is cut over the axes, and so are its gradient and the
optimizer's states. The level says when a program gathers the parameter and when it reduce-scatters the gradient.
`within` names the axes of fast links: parameters cross the others once a step, and so do sums of gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import ClassVar

from lark import Token, Tree

from ..diagnostics import Span
from .error import PlanCode, PlanError, check_axes_differ, check_patterns, read_items, unexpected_word
from .mesh import read_number
from .precision import FloatFormat
from .source import Places, Source, tokens
from .spelling import byte_count, bytes_text, listed, shortened

LEVELS = (1, 2, 3)
MAX_PREFETCH = 1000
"""The most layers ahead."""
MAX_BUCKET = 10**12
"""The most bytes of a bucket."""
ELEMENT_BYTES = 4
"""What `from` counts an element as, whatever its format, so that a check in float64 cuts the same parameters."""

_refused = partial(unexpected_word, PlanCode.BAD_ZERO)


@dataclass(frozen=True)
class Zero:
    """A `zero` statement.

    Raises PlanError for a level or an item that does not exist (E0128), a bad pattern (E0113), and an axis named twice
    (E0112).

    >>> print(Zero(3, ("dp",), least_bytes=4000))
    zero 3 over dp { from 4KB }
    """

    subject: ClassVar[str] = "parameters"
    level: int
    axes: tuple[str, ...]
    only: tuple[str, ...] = ()
    """Globs of the parameters that the statement is about, or of modules that own them; empty: all."""
    least_bytes: int = 0
    """Smaller parameters stay whole, counted as in fp32."""
    prefetch: int = 1
    """At level 3: how many layers ahead parameters are gathered."""
    keeps_forward: bool = False
    """At level 3: whether what the forward gathered is kept until the backward."""
    bucket: int = 0
    """How many bytes of parameters, or of gradients, one collective moves at most; 0: each tensor by itself."""
    within: tuple[str, ...] = ()
    """The axes, of `axes`, over which a step gathers again and again; over the others it gathers once. Empty: all."""
    reduce: FloatFormat | None = None
    """The format in which gradients of stored parameters are reduced; None: as `precision` says."""
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement, its axes and patterns; `layout` is that of the level."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Source spans of the items, by keyword."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise PlanError(
                PlanCode.BAD_ZERO,
                f"there is no ZeRO level {self.level}",
                span=self.places.layout,
                expected=f"expected {listed([str(level) for level in LEVELS])}",
            )
        check_axes_differ(self.axes, self.places)
        check_patterns(self.only, self.places)
        if not 0 <= self.prefetch <= MAX_PREFETCH:
            raise PlanError(
                PlanCode.BAD_ZERO,
                f"parameters cannot be gathered {self.prefetch} layers ahead",
                span=self.spans.get("prefetch", self.span),
                expected=f"expected 0 to {MAX_PREFETCH}",
            )
        if not 0 <= self.bucket <= MAX_BUCKET:
            raise PlanError(
                PlanCode.BAD_ZERO,
                f"a bucket cannot have {bytes_text(self.bucket)}",
                span=self.spans.get("bucket", self.span),
                expected=f"expected at most {bytes_text(MAX_BUCKET)}",
            )
        for item, is_set in (("keep", self.keeps_forward), ("prefetch", self.prefetch != 1)):
            if is_set and self.level < 3:
                raise PlanError(
                    PlanCode.BAD_ZERO,
                    f'"{item}" is for level 3: at level {self.level} a call gathers each parameter once',
                    span=self.spans.get(item, self.span),
                    help=f'leave "{item}" out, or write zero 3',
                )

    @property
    def patterns(self) -> tuple[str, ...]:
        """Globs of what the statement is about."""
        return self.only or ("*",)

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    @property
    def gathers_once(self) -> bool:
        """Whether one gather serves the forward and the backward."""
        return self.level < 3 or self.keeps_forward

    @property
    def scatters_each(self) -> bool:
        """Whether each microbatch's gradients are reduce-scattered; else their sum is, once a step."""
        return self.level > 1

    def is_too_small(self, shape: Sequence[int]) -> bool:
        """Whether a parameter stays whole for its size."""
        return prod(shape) * ELEMENT_BYTES < self.least_bytes

    def cuts(self, shape: Sequence[int], computed: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
        """The dim of a parameter that each axis shards, beside the dims of its `computed` placement.

        The largest dim that the ranks divide, of those that no other axis shards if one of them will do; else dim 0,
        padded. An axis that shards the parameter already does not shard it again. Axes of `within` come first, as the
        outer ones; where all ranks together divide no dim, they shard it alone.

        >>> Zero(3, ("dp",)).cuts((6, 8), {"tp": 1}, {"dp": 2, "tp": 2})
        {'dp': 0}
        """
        axes = [axis for axis in self.axes if axis not in computed]
        if not axes or not shape or self.is_too_small(shape):
            return {}
        inner = [axis for axis in self.within if axis in axes]
        across = [axis for axis in axes if axis not in inner]
        if inner and across:
            together = _best_dim(shape, computed, [*inner, *across], sizes)
            if together is not None:
                return dict.fromkeys([*inner, *across], together)
            axes = inner
        best = _best_dim(shape, computed, axes, sizes)
        return dict.fromkeys(axes, 0 if best is None else best)

    def __str__(self) -> str:
        items = [f"prefetch {self.prefetch}"] if self.prefetch != 1 else []
        items += [f"bucket {bytes_text(self.bucket)}"] if self.bucket else []
        items += [f"within {', '.join(self.within)}"] if self.within else []
        items += ["keep forward"] if self.keeps_forward else []
        items += [f"reduce {self.reduce}"] if self.reduce is not None else []
        items += ["only " + ", ".join(f'"{pattern}"' for pattern in self.only)] if self.only else []
        items += [f"from {bytes_text(self.least_bytes)}"] if self.least_bytes else []
        block = f" {{ {'  '.join(items)} }}" if items else ""
        return f"zero {self.level} over {', '.join(self.axes)}{block}"


def _best_dim(
    shape: Sequence[int], computed: Mapping[str, int], axes: Sequence[str], sizes: Mapping[str, int]
) -> int | None:
    """The largest dim that the ranks of `axes` divide, rather one that no axis of `computed` shards; None: no dim."""
    ranks = prod(sizes[axis] for axis in axes)
    parts = [ranks * prod(sizes[a] for a, dim in computed.items() if dim == d) for d in range(len(shape))]
    fitting = [d for d, extent in enumerate(shape) if extent % parts[d] == 0]
    return max(fitting, key=lambda d: (parts[d] == ranks, shape[d], -d), default=None)


def check_within(statement: Zero) -> None:
    """Raise PlanError unless `within` names some, and not all, of the axes that the statement is over (E0128)."""
    span = statement.spans.get("within", statement.span)
    others = [axis for axis in statement.within if axis not in statement.axes]
    if others:
        raise PlanError(
            PlanCode.BAD_ZERO,
            f'"within" names the axis "{others[0]}", over which the statement cuts nothing',
            span=span,
            expected=f"expected some of {listed(statement.axes)}",
            help=f"add {others[0]} to the axes after over",
        )
    if statement.within and {*statement.within} == {*statement.axes}:
        raise PlanError(
            PlanCode.BAD_ZERO,
            f'"within" names all axes of the statement, {listed(statement.axes)}, so that none is left to cross once',
            span=span,
            help='leave "within" out, or name the axis between nodes after over too',
        )


def check_common_items(statements: Sequence[Zero]) -> None:
    """A program gathers all stored parameters equally far ahead, in buckets of one size (E0128)."""
    for statement in statements:
        first = statements[0]
        for item, own, other in (
            ("prefetch", f"gathers {statement.prefetch} layers ahead", str(first.prefetch)),
            ("bucket", f"makes buckets of {statement.bucket} bytes", str(first.bucket)),
            ("reduce", f"reduces gradients in {statement.reduce or 'the format of precision'}", str(first.reduce)),
        ):
            if getattr(statement, item) != getattr(first, item):
                raise PlanError(
                    PlanCode.BAD_ZERO,
                    f"this statement {own}, and another {other}",
                    span=statement.spans.get(item, statement.span),
                    notes=(("the other is here", first.span),),
                    help=f'give both the same "{item}"',
                )


def read_zero(tree: Tree[Token], source: Source) -> Zero:
    """The value of a `zero` statement. Raises PlanError for items and values that do not exist (E0128)."""
    keyword, level, *ends = tokens(tree, "ZERO", "NUMBER", "RBRACE")
    axes = tokens(tree, "AXIS")
    fields: dict[str, object] = {}
    spans: dict[str, Span] = {}
    patterns: tuple[Span, ...] = ()
    clauses = tree.find_data("zero_clause")
    for name, item, values, span in read_items(clauses, PlanCode.BAD_ZERO, "zero has", tuple(_READERS), source):
        spans[name] = span
        attribute, read = _READERS[name]
        fields[attribute] = read(item, values, source)
        if name == "only":
            patterns = tuple(source.span_of(value) for value in values)
    places = Places(
        source.span_of(keyword, (ends or axes)[-1]),
        source.span_of(level),
        tuple(source.span_of(axis) for axis in axes),
        patterns,
    )
    names = tuple(str(axis) for axis in axes)
    return Zero(read_number(level), names, places=places, spans=spans, **fields)  # type: ignore[arg-type]  # by `_READERS`


def _read_axes(item: Token, values: Sequence[Token], source: Source) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if value.type == "PATTERN" or not value.isidentifier():
            raise _refused(f'"{item}" cannot be "{shortened(value)}"', value, ("the name of an axis",), source)
        if value in values[:index]:
            message = f'"{item}" names the axis "{value}" twice'
            raise PlanError(PlanCode.AXIS_USED_TWICE, message, span=source.span_of(value), help=f'name "{value}" once')
    return tuple(str(value) for value in values)


def _read_format(item: Token, values: Sequence[Token], source: Source) -> FloatFormat:
    value = _only(item, values, source)
    if value not in tuple(FloatFormat):
        raise _refused(f'"{item}" cannot be "{shortened(value)}"', value, tuple(FloatFormat), source)
    return FloatFormat(value)


def _read_keep(item: Token, values: Sequence[Token], source: Source) -> bool:
    value = _only(item, values, source)
    if value not in ("forward", "none"):
        raise _refused(f'"keep" cannot be "{shortened(value)}"', value, ("forward", "none"), source)
    return str(value) == "forward"


def _read_count(item: Token, values: Sequence[Token], source: Source) -> int:
    value = _only(item, values, source)
    if not re.fullmatch(r"-?[0-9]+", value):
        raise _refused(f'"{item}" cannot be "{shortened(value)}"', value, ("a whole number",), source)
    return read_number(value)


def _read_patterns(item: Token, values: Sequence[Token], source: Source) -> tuple[str, ...]:
    for value in values:
        if value.type != "PATTERN":
            raise _refused(f'"only" cannot be "{shortened(value)}"', value, ("a pattern in quotes",), source)
    return tuple(str(value[1:-1]) for value in values)


def _read_bytes(item: Token, values: Sequence[Token], source: Source) -> int:
    value = _only(item, values, source)
    size = byte_count(value)
    if size is None:
        raise _refused(f'"{item}" cannot be "{shortened(value)}"', value, ("bytes with a unit, such as 4KB",), source)
    return size


def _only(item: Token, values: Sequence[Token], source: Source) -> Token:
    """The only value of an item."""
    if len(values) > 1:
        raise _refused(f'"{item}" cannot be "{shortened(values[1])}"', values[1], ("one value",), source)
    return values[0]


_READERS: dict[str, tuple[str, Callable[[Token, Sequence[Token], Source], object]]] = {
    "prefetch": ("prefetch", _read_count),
    "bucket": ("bucket", _read_bytes),
    "keep": ("keeps_forward", _read_keep),
    "within": ("within", _read_axes),
    "reduce": ("reduce", _read_format),
    "only": ("only", _read_patterns),
    "from": ("least_bytes", _read_bytes),
}
"""By item, its field and the function that reads its value."""
