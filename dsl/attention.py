"""`attention over cp { method ring }`: how attention reads the keys of other ranks, where an axis cuts the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from lark import Token, Tree

from ..diagnostics import Span
from .error import PlanCode, PlanError, check_axes_differ, read_items, unexpected_word
from .shard import Dim, Role, ShardInputs
from .source import Places, Source, tokens
from .spelling import listed, shortened

_refused = partial(unexpected_word, PlanCode.BAD_ATTENTION)


class Method(StrEnum):
    """How a rank's queries meet the keys of all tokens."""

    ALL_TO_ALL = "all_to_all"
    """For the time of attention the axis shards heads instead of tokens (Ulysses)."""
    RING = "ring"
    """Keys and values go from rank to rank."""
    BIDIRECTIONAL = "bidirectional"
    """Queries go from rank to rank, and what came of them goes back (TokenRing)."""
    RING_ALL_TO_ALL = "ring_all_to_all"
    """The first of two axes is a ring, over the second one heads are exchanged (USP)."""
    STATE = "state"
    """Sums along the tokens, of linear attention, go on from the states of other ranks; else as gather (LASP-2)."""
    GATHER = "gather"
    """Keys and values are gathered (Llama 3)."""


class Layout(StrEnum):
    """Which tokens a rank of a ring has."""

    CONTIGUOUS = "contiguous"
    ZIGZAG = "zigzag"
    """Of two parts for each rank, one from the start of the sequence and one from its end."""


_RINGS = (Method.RING, Method.BIDIRECTIONAL, Method.RING_ALL_TO_ALL)
"""The methods that may have a layout."""

_VALUES: dict[str, type[Method | Layout]] = {"method": Method, "layout": Layout}
"""By item, what it may be."""

_LATER: dict[str, tuple[str, ...]] = {
    "method": (),
    "layout": ("balanced",),
}
"""By item, words of the language that are not built."""


@dataclass(frozen=True)
class Attention:
    """An `attention` statement. Raises PlanError for an axis named twice (E0112), and a layout without a ring (E0129).

    >>> print(Attention(("cp",), Method.GATHER))
    attention over cp { method gather }
    """

    axes: tuple[str, ...]
    """Axes that cut the tokens of inputs, outermost first."""
    method: Method
    layout: Layout = Layout.CONTIGUOUS
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement and its axes."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Source spans of the items, by keyword."""

    def __post_init__(self) -> None:
        check_axes_differ(self.axes, self.places)
        if self.method is Method.RING_ALL_TO_ALL and len(self.axes) != 2:
            raise PlanError(
                PlanCode.BAD_ATTENTION,
                f"{self.method} is over two axes, not {len(self.axes)}",
                span=self.places.axis(len(self.axes) - 1),
                expected="expected the axis of the ring, then that over which heads are exchanged",
                help="name two axes, or write method ring or all_to_all",
            )
        if self.layout is not Layout.CONTIGUOUS and self.method not in _RINGS:
            raise PlanError(
                PlanCode.BAD_ATTENTION,
                f"the layout {self.layout} is for rings, whose work it balances: {self.method} has no use for it",
                span=self.spans.get("layout", self.span),
                help="leave the layout out, or write method ring",
            )

    @property
    def methods(self) -> dict[str, Method]:
        """By axis, the one method that it has."""
        if self.method is Method.RING_ALL_TO_ALL:
            return dict(zip(self.axes, (Method.RING, Method.ALL_TO_ALL), strict=True))
        return dict.fromkeys(self.axes, self.method)

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def __str__(self) -> str:
        layout = "" if self.layout is Layout.CONTIGUOUS else f"  layout {self.layout}"
        return f"attention over {', '.join(self.axes)} {{ method {self.method}{layout} }}"


def check_attention(statements: Sequence[Attention], inputs: Sequence[ShardInputs], mesh: Sequence[str]) -> None:
    """Raise PlanError E0129 for an axis with two methods, and for one that cuts no tokens of an input."""
    places: dict[str, Span | None] = {}
    cut = {axis: statement for statement in inputs for axis in statement.axes}
    batch = {axis for axis, statement in cut.items() if _cuts_batch(statement)}
    fitting = [axis for axis in mesh if axis in cut and axis not in batch]
    for statement in statements:
        for index, axis in enumerate(statement.axes):
            span = statement.places.axis(index)
            if axis in places:
                raise PlanError(
                    PlanCode.BAD_ATTENTION,
                    f'attention over "{axis}" has two methods',
                    span=span,
                    notes=(("the first is here", places[axis]),),
                    help="keep one of the two statements",
                )
            places[axis] = span
            if axis not in fitting:
                found = "it cuts the batch of the inputs" if axis in batch else "no input is cut over it"
                raise PlanError(
                    PlanCode.BAD_ATTENTION,
                    f'the axis "{axis}" cuts no tokens: {found}',
                    span=span,
                    expected=f"expected {listed(fitting or ['an axis that cuts the tokens of the inputs'])}",
                    notes=(("it is cut here", cut[axis].span),) if axis in batch else (),
                    help="" if axis in batch else f"add shard inputs dim 1 over {axis}, if dim 1 are the tokens",
                )


def _cuts_batch(statement: ShardInputs) -> bool:
    return statement.layout is Role.BATCH or (statement.layout == Dim(0) and not statement.patterns)


def read_attention(tree: Tree[Token], source: Source) -> Attention:
    """The value of an `attention` statement. Raises PlanError for items and values that do not exist (E0129)."""
    keyword, end = tokens(tree, "ATTENTION", "RBRACE")
    axes = tokens(tree, "AXIS")
    fields: dict[str, Method | Layout] = {}
    spans: dict[str, Span] = {}
    clauses, known = tree.find_data("attention_item"), tuple(_VALUES)
    for name, _item, (value,), span in read_items(clauses, PlanCode.BAD_ATTENTION, "attention has", known, source):
        spans[name] = span
        if value in _LATER[name]:
            message = f'attention cannot have the {name} "{value}" yet'
            help = f"write {listed([f'{name} {each}' for each in _VALUES[name]])}"
            raise PlanError(PlanCode.BAD_ATTENTION, message, span=source.span_of(value), help=help)
        if value not in [*_VALUES[name]]:
            raise _refused(f'"{name}" cannot be "{shortened(value)}"', value, tuple(_VALUES[name]), source)
        fields[name] = _VALUES[name](value)
    if "method" not in fields:
        raise _refused("attention needs a method", keyword, [f"method {method}" for method in Method], source)
    places = Places(source.span_of(keyword, end), axes=tuple(source.span_of(axis) for axis in axes))
    return Attention(tuple(str(axis) for axis in axes), places=places, spans=spans, **fields)  # type: ignore[arg-type]
