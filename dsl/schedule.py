"""A schedule that is written out: for each stage, phases of tasks, as many times as an expression says.

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
    """Where virtual stages lie."""

    LOOP = "loop"
    """Round the ranks, again and again."""
    V = "v"
    """Down the ranks and up again; two chunks."""


@dataclass(frozen=True)
class Op:
    """One task: F, B, W or BW, of the next microbatch of its kind on a chunk of the stage."""

    kind: str
    chunk: Expression | None = None
    """Which of the rank's chunks; None: the only one."""
    span: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.kind if self.chunk is None else f"{self.kind}[{self.chunk}]"


@dataclass(frozen=True)
class Phase:
    """Some tasks, repeated."""

    word: str
    """warmup, steady or drain: for the reader."""
    count: Expression | None
    """How many times; None: until no microbatch is left for any of the tasks."""
    ops: tuple[Op, ...]
    span: Span | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        count = "" if self.count is None else f" {self.count}"
        return f"{self.word}{count} {{ {' '.join(map(str, self.ops))} }}"


@dataclass(frozen=True)
class WrittenSchedule:
    """What the text of a schedule says. Two are equal when they say the same, wherever they were written.

    Raises PlanError where two of its names are one (E0132).
    """

    name: str
    parameters: tuple[str, ...]
    """The names of stages, microbatches and, if it has several, chunks."""
    stage: str
    phases: tuple[Phase, ...]
    shape: Shape = Shape.LOOP
    spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)
    """Where the parameters and the stage are named."""
    span: Span | None = field(default=None, compare=False, repr=False)
    """Where the schedule is named."""

    def __post_init__(self) -> None:
        bound = (*self.parameters, self.stage)
        for at, name in enumerate(bound):
            if name in bound[:at]:
                raise PlanError(
                    WrittenCode.NAME_TWICE,
                    f'"{name}" names two things',
                    span=self.spans[at] if self.spans else None,
                    notes=(("first named here", self.spans[bound.index(name)] if self.spans else None),),
                    help="give one of them another name",
                )

    @staticmethod
    def parse(text: str, file: str = "<schedule>") -> WrittenSchedule:
        """The schedule that `text` spells. Raises PlanError at the first mistake (E0101, E0102)."""
        return _parse(text, Source(file, text))

    def __str__(self) -> str:
        words = ("stages", "microbatches", "chunks")
        given = ", ".join(f"{word} {name}" for word, name in zip(words, self.parameters, strict=False))
        shape = [] if self.shape == Shape.LOOP else [f"  placement {self.shape}"]
        phases = [f"    {phase}" for phase in self.phases]
        return "\n".join(
            [f"schedule {self.name}({given}) {{", *shape, f"  stage {self.stage} {{", *phases, "  }", "}"]
        )  # fmt: skip


@cache
def _grammar() -> Lark:
    text = files(__package__).joinpath("schedule.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", maybe_placeholders=False)


def read_schedule(tree: Tree[Token], source: Source) -> WrittenSchedule:
    """The schedule that stands in a plan; raises PlanError as `WrittenSchedule.parse` does."""
    (token,) = tokens(tree, "SCHEDULE")
    before = "\n" * ((token.line or 1) - 1) + " " * ((token.column or 1) - 1)
    return _parse(before + token, source)


def _parse(text: str, source: Source) -> WrittenSchedule:
    """The schedule in a text whose lines and columns are those of the source."""
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
        spans=tuple(source.of(name) for name in (*names[1:], bound)),
        span=source.of(own[0], names[0]),
    )


def _phase(tree: Tree[Token], source: Source) -> Phase:
    word, *rest = tree.children
    assert isinstance(word, Token)
    trees = [child for child in rest if isinstance(child, Tree)]
    ops = tuple(_op(child, source) for child in trees if child.data == "op")
    counts = [read_expression(child, source) for child in trees if child.data != "op"]
    inside = tokens(tree, "WARMUP", "STEADY", "DRAIN", "NAME", "NUMBER")
    first_op = tokens(tree, "KIND")[0].start_pos or 0
    last = [token for token in inside if (token.start_pos or 0) < first_op][-1]
    return Phase(str(word), counts[0] if counts else None, ops, source.of(word, last))


def _op(tree: Tree[Token], source: Source) -> Op:
    kind = tree.children[0]
    assert isinstance(kind, Token)
    chunks = [read_expression(child, source) for child in tree.children if isinstance(child, Tree)]
    return Op(str(kind), chunks[0] if chunks else None, source.of(kind))
