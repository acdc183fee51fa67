"""`precision { params fp32  compute bf16  reduce fp32 }`: dtypes of parameters, compute, and gradient reduction."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lark import Token, Tree

from ..diagnostics import Span
from .error import PlanCode, PlanError, item_set_twice
from .source import Source, tokens
from .spelling import did_you_mean, listed, shortened


class FloatFormat(StrEnum):
    """A floating-point format."""

    FP64 = "fp64"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


ITEMS = ("params", "compute", "reduce")
"""The items of the statement, in the order in which they are printed."""


@dataclass(frozen=True)
class Precision:
    """A `precision` statement; an item that is left out keeps the model's dtypes.

    Raises PlanError for a statement without items (E0101).

    >>> print(Precision(compute=FloatFormat.BF16))
    precision { compute bf16 }
    """

    params: FloatFormat | None = None
    """The dtype of the model's floating parameters, which optimizers see."""
    compute: FloatFormat | None = None
    """The dtype that parameters and floating inputs are cast to for the forward; None: no cast."""
    reduce: FloatFormat | None = None
    """The dtype in which gradients are reduced over ranks; None: that of each parameter."""
    span: Span | None = field(default=None, compare=False, repr=False)
    """The whole statement's place."""
    params_span: Span | None = field(default=None, compare=False, repr=False)
    """The place of the format of `params`."""

    def __post_init__(self) -> None:
        if (self.params, self.compute, self.reduce) == (None, None, None):
            message, help = "the precision statement is empty", "write, for example: precision { compute bf16 }"
            raise PlanError(PlanCode.SYNTAX, message, span=self.span, expected=f"expected {listed(ITEMS)}", help=help)

    def __str__(self) -> str:
        formats = [(item, getattr(self, item)) for item in ITEMS]
        return f"precision {{ {'  '.join(f'{item} {format}' for item, format in formats if format)} }}"


def read_precision(tree: Tree[Token], source: Source) -> Precision:
    """The value of a `precision` statement; raises PlanError for an unknown or repeated item or format (E0121)."""
    keyword, *words, end = tokens(tree, "PRECISION", "ITEM", "FORMAT", "RBRACE")
    items, format_words = words[::2], words[1::2]
    formats: dict[str, FloatFormat] = {}
    spans: dict[str, Span] = {}
    for item, word in zip(items, format_words, strict=True):
        name = str(item)
        if name not in ITEMS:
            raise _unknown("precision has no item", item, ITEMS, source)
        if name in formats:
            raise item_set_twice(PlanCode.BAD_PRECISION, "the precision", name, source.span_of(item), spans[name])
        if word not in tuple(FloatFormat):
            raise _unknown("there is no format", word, tuple(FloatFormat), source)
        formats[name], spans[name] = FloatFormat(word), source.span_of(item, word)
    params, compute, reduce = (formats.get(item) for item in ITEMS)
    return Precision(params, compute, reduce, source.span_of(keyword, end), spans.get("params"))


def _unknown(problem: str, word: Token, known: tuple[str, ...], source: Source) -> PlanError:
    return PlanError(
        PlanCode.BAD_PRECISION,
        f'{problem} "{shortened(word)}"',
        span=source.span_of(word),
        expected=f"expected {listed(known)}",
        help=_meant(word, known),
    )


_OTHER_NAMES = {
    FloatFormat.FP64: ("float64", "f64", "double"),
    FloatFormat.FP32: ("float32", "f32", "float", "single"),
    FloatFormat.BF16: ("bfloat16", "brain"),
    FloatFormat.FP16: ("float16", "f16", "half"),
}
"""Names of the formats in other tools."""


def _meant(word: str, known: tuple[str, ...]) -> str:
    """`did_you_mean` that also knows the formats' names in other tools."""
    bare = word.lower().removeprefix("torch.")
    synonyms = [format for format, names in _OTHER_NAMES.items() if bare in names and format in known]
    return f'did you mean "{synonyms[0]}"?' if synonyms else did_you_mean(word, known)
