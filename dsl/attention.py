"""`attention over cp { method ring }`: how attention reads the keys of other ranks, where an axis cuts the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lark import Token, Tree

from ..diagnostics import Span
from .error import PlanCode, PlanError, item_set_twice
from .shard import Dim, Role, ShardInputs
from .source import Places, Source, tokens
from .spelling import did_you_mean, listed, shortened


class Method(StrEnum):
    """How a rank's queries meet the keys of all tokens."""

    ALL_TO_ALL = "all_to_all"
    """For the time of attention the axis shards heads instead of tokens (Ulysses)."""
    RING = "ring"
    """Keys and values go from rank to rank."""
    GATHER = "gather"
    """Keys and values are gathered (Llama 3)."""


_LATER = {
    "method": ("bidirectional", "ring_all_to_all", "state"),
    "layout": ("zigzag", "balanced"),
}
"""By item, words of the language that are not built."""


@dataclass(frozen=True)
class Attention:
    """An `attention` statement. Raises PlanError for an axis named twice (E0112).

    >>> print(Attention(("cp",), Method.GATHER))
    attention over cp { method gather }
    """

    axes: tuple[str, ...]
    """Axes that cut the tokens of inputs, outermost first."""
    method: Method
    places: Places = field(default=Places(), compare=False, repr=False)
    """Source spans of the statement and its axes."""
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False, repr=False, hash=False)
    """Source spans of the items, by keyword."""

    def __post_init__(self) -> None:
        for index, axis in enumerate(self.axes):
            if axis in self.axes[:index]:
                message = f'the axis "{axis}" is named twice'
                raise PlanError(
                    PlanCode.AXIS_USED_TWICE, message, span=self.places.axis(index), help=f'name "{axis}" once'
                )

    @property
    def span(self) -> Span | None:
        """The whole statement's place."""
        return self.places.statement

    def __str__(self) -> str:
        return f"attention over {', '.join(self.axes)} {{ method {self.method} }}"


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
    fields: dict[str, Method] = {}
    spans: dict[str, Span] = {}
    for clause in tree.find_data("attention_item"):
        item, value = tokens(clause, "ATTENTION_ITEM", "WORD")
        name = str(item)
        if name not in ("method", *_LATER):
            raise _refused(f'attention has no item "{shortened(item)}"', item, ("method",), source)
        if name in spans:
            raise item_set_twice(PlanCode.BAD_ATTENTION, "attention", name, source.span_of(item), spans[name])
        spans[name] = source.span_of(item, value)
        if value in _LATER[name]:
            message = f'attention cannot have the {name} "{value}" yet'
            help = f"write {listed([f'method {method}' for method in Method])}"
            raise PlanError(PlanCode.BAD_ATTENTION, message, span=source.span_of(value), help=help)
        if name != "method" or value not in [*Method]:
            raise _refused(f'"{name}" cannot be "{shortened(value)}"', value, tuple(Method), source)
        fields["method"] = Method(value)
    if "method" not in fields:
        raise _refused("attention needs a method", keyword, [f"method {method}" for method in Method], source)
    places = Places(source.span_of(keyword, end), axes=tuple(source.span_of(axis) for axis in axes))
    return Attention(tuple(str(axis) for axis in axes), places=places, spans=spans, **fields)


def _refused(message: str, word: Token, expected: Sequence[str], source: Source) -> PlanError:
    return PlanError(
        PlanCode.BAD_ATTENTION,
        message,
        span=source.span_of(word),
        expected=f"expected {listed(expected)}",
        help=did_you_mean(word, expected),
    )
