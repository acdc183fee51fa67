"""Written schedules: for each stage, phases of tasks with repeat counts.

schedule mine(stages p, microbatches m) {
  stage s {
    warmup min(p - s - 1, m) { F }
    steady m - min(p - s - 1, m) { F B }
    drain { B }
  }
}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from ..diagnostics import Span
from .error import PlanError, WrittenCode
from .expression import Expression, read_expression
from .schedule_syntax import unexpected_character, unexpected_token
from .source import Source, tokens


class Shape(StrEnum):
    """How virtual stages are placed on ranks."""

    LOOP = "loop"
    """Round-robin: stage s on rank s mod p."""
    V = "v"
    """Down the ranks and up again, with two chunks per rank."""


@dataclass(frozen=True)
class Op:
    """A task of a phase: F, B, W or BW for the next microbatch of that kind on a chunk."""

    kind: str
    chunk: Expression | None = None
    """The chunk's number on its rank; None: the only chunk."""
    span: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.kind if self.chunk is None else f"{self.kind}[{self.chunk}]"


@dataclass(frozen=True)
class Phase:
    """A sequence of tasks with a repeat count."""

    word: str
    """warmup, steady or drain; has no effect."""
    count: Expression | None
    """The repeat count; None: until every task has run for all microbatches."""
    ops: tuple[Op, ...]
    span: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        count = "" if self.count is None else f" {self.count}"
        return f"{self.word}{count} {{ {' '.join(map(str, self.ops))} }}"


@dataclass(frozen=True)
class WrittenSchedule:
    """A `schedule` statement. Two are equal if their texts are, up to source spans.

    Raises PlanError if a name is declared twice (E0132).
    """

    name: str
    parameters: tuple[str, ...]
    """The names of the numbers of stages, microbatches and (optionally) chunks."""
    stage: str
    """The name of the stage variable."""
    phases: tuple[Phase, ...]
    shape: Shape = Shape.LOOP
    spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)
    """Source spans of the parameters and the stage variable."""
    span: Span | None = field(default=None, compare=False, repr=False)
    """The source span of the schedule's name."""

    def __post_init__(self) -> None:
        bound = (*self.parameters, self.stage)
        for index, name in enumerate(bound):
            if name in bound[:index]:
                raise PlanError(
                    WrittenCode.NAME_TWICE,
                    f'the name "{name}" is declared twice',
                    span=self.spans[index] if self.spans else None,
                    notes=(("first declared here", self.spans[bound.index(name)] if self.spans else None),),
                    help="give one of them another name",
                )

    @staticmethod
    def parse(text: str, file: str = "<schedule>") -> WrittenSchedule:
        """Parse a schedule. Raises PlanError at the first mistake (E0101, E0102)."""
        return _parse(text, Source(file, text))

    def __str__(self) -> str:
        words = ("stages", "microbatches", "chunks")
        parameters = ", ".join(f"{word} {name}" for word, name in zip(words, self.parameters, strict=False))
        placement = [] if self.shape == Shape.LOOP else [f"  placement {self.shape}"]
        phases = [f"    {phase}" for phase in self.phases]
        return "\n".join(
            [f"schedule {self.name}({parameters}) {{", *placement, f"  stage {self.stage} {{", *phases, "  }", "}"]
        )  # fmt: skip


@cache
def _grammar() -> Lark:
    text = files(__package__).joinpath("schedule.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", maybe_placeholders=False)


def read_schedule(tree: Tree[Token], source: Source) -> WrittenSchedule:
    """The value of a `schedule` statement of a plan. Raises PlanError as `WrittenSchedule.parse` does."""
    (token,) = tokens(tree, "SCHEDULE")
    before = "\n" * ((token.line or 1) - 1) + " " * ((token.column or 1) - 1)
    return _parse(before + token, source)


def _parse(text: str, source: Source) -> WrittenSchedule:
    """Parse a text that is padded to the lines and columns of the source."""
    try:
        tree = _grammar().parse(text)
    except UnexpectedToken as error:
        accepted = error.interactive_parser.accepts()  # type: ignore[no-untyped-call]  # lark leaves it untyped
        raise unexpected_token(error.token, frozenset(accepted), source) from None
    except UnexpectedCharacters as error:
        raise unexpected_character(error.line, error.column, source) from None
    return _read(tree, source)


def _read(tree: Tree[Token], source: Source) -> WrittenSchedule:
    own = [child for child in tree.children if isinstance(child, Token)]
    names = [token for token in own if token.type == "NAME"]
    (stage,) = (child for child in tree.children if isinstance(child, Tree))
    (bound,) = (child for child in stage.children if isinstance(child, Token) and child.type == "NAME")
    shapes = [Shape(token) for token in own if token.type == "SHAPE"]
    return WrittenSchedule(
        name=str(names[0]),
        parameters=tuple(map(str, names[1:])),
        stage=str(bound),
        phases=tuple(_phase(child, source) for child in stage.children if isinstance(child, Tree)),
        shape=shapes[0] if shapes else Shape.LOOP,
        spans=tuple(source.span_of(name) for name in (*names[1:], bound)),
        span=source.span_of(own[0], names[0]),
    )


def _phase(tree: Tree[Token], source: Source) -> Phase:
    word, *children = tree.children
    assert isinstance(word, Token)
    trees = [child for child in children if isinstance(child, Tree)]
    ops = tuple(_op(child, source) for child in trees if child.data == "op")
    counts = [read_expression(child, source) for child in trees if child.data != "op"]
    inside = tokens(tree, "WARMUP", "STEADY", "DRAIN", "NAME", "NUMBER")
    first_op = tokens(tree, "KIND")[0].start_pos or 0
    last = [token for token in inside if (token.start_pos or 0) < first_op][-1]
    return Phase(str(word), counts[0] if counts else None, ops, source.span_of(word, last))


def _op(tree: Tree[Token], source: Source) -> Op:
    kind = tree.children[0]
    assert isinstance(kind, Token)
    chunks = [read_expression(child, source) for child in tree.children if isinstance(child, Tree)]
    return Op(str(kind), chunks[0] if chunks else None, source.span_of(kind))
