"""`precision { params fp32  compute bf16  reduce fp32 }`: which floats hold, compute, and are added up over ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lark import Token, Tree

from ..diagnostics import Span
from .error import PlanCode, PlanError
from .source import Source, tokens
from .spelling import did_you_mean, listed, shortened


class FloatFormat(StrEnum):
    """A format of floating-point numbers."""

    FP64 = "fp64"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


ITEMS = ("params", "compute", "reduce")
"""What a format can be said of, in the order in which it is printed."""


@dataclass(frozen=True)
class Precision:
    """The formats of a plan's precision; what is not said stays as it is in the model.

    Raises PlanError where nothing at all is said (E0101).

    >>> print(Precision(compute=FloatFormat.BF16))
    precision { compute bf16 }
    """

    params: FloatFormat | None = None
    """What the model's floating parameters are, and what optimizers see."""
    compute: FloatFormat | None = None
    """What parameters and floating inputs are cast to for the forward; None: they are used as they are."""
    reduce: FloatFormat | None = None
    """What the parameters' gradients are added up over ranks in; None: each in its parameter's own format."""
    span: Span | None = field(default=None, compare=False, repr=False)
    """The whole statement's place."""
    params_span: Span | None = field(default=None, compare=False, repr=False)
    """The place of the format of `params`."""

    def __post_init__(self) -> None:
        if (self.params, self.compute, self.reduce) == (None, None, None):
            message, help = "the precision says nothing", "write, for example: precision { compute bf16 }"
            raise PlanError(PlanCode.SYNTAX, message, span=self.span, expected=f"expected {listed(ITEMS)}", help=help)

    def __str__(self) -> str:
        said = [(item, getattr(self, item)) for item in ITEMS]
        return f"precision {{ {'  '.join(f'{item} {format}' for item, format in said if format)} }}"


def read_precision(tree: Tree[Token], source: Source) -> Precision:
    """The value of a `precision` statement; raises PlanError for an unknown or repeated item or format (E0121)."""
    keyword, *words, end = tokens(tree, "PRECISION", "ITEM", "FORMAT", "RBRACE")
    items, formats = words[::2], words[1::2]
    said: dict[str, FloatFormat] = {}
    spans: dict[str, Span] = {}
    for item, word in zip(items, formats, strict=True):
        name = str(item)
        if name not in ITEMS:
            raise _unknown("precision has no item", item, ITEMS, source)
        if name in said:
            raise PlanError(
                PlanCode.BAD_PRECISION,
                f'the precision says "{name}" twice',
                span=source.of(item),
                notes=(("first said here", spans[name]),),
                help="keep one of them",
            )
        if word not in tuple(FloatFormat):
            raise _unknown("there is no format", word, tuple(FloatFormat), source)
        said[name], spans[name] = FloatFormat(word), source.of(item, word)
    params, compute, reduce = (said.get(item) for item in ITEMS)
    return Precision(params, compute, reduce, source.of(keyword, end), spans.get("params"))


def _unknown(what: str, word: Token, known: tuple[str, ...], source: Source) -> PlanError:
    return PlanError(
        PlanCode.BAD_PRECISION,
        f'{what} "{shortened(word)}"',
        span=source.of(word),
        expected=f"expected {listed(known)}",
        help=_meant(word, known),
    )


_OTHER_NAMES = {
    FloatFormat.FP64: ("float64", "f64", "double"),
    FloatFormat.FP32: ("float32", "f32", "float", "single"),
    FloatFormat.BF16: ("bfloat16", "brain"),
    FloatFormat.FP16: ("float16", "f16", "half"),
}
"""What the formats are called elsewhere."""


def _meant(word: str, known: tuple[str, ...]) -> str:
    """The question that offers the known word which is meant, by another of its names too."""
    bare = word.lower().removeprefix("torch.")
    other = [format for format, names in _OTHER_NAMES.items() if bare in names and format in known]
    return f'did you mean "{other[0]}"?' if other else did_you_mean(word, known)
