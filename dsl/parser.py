"""The parser: plan text to statements, one reader function per kind of statement."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from .attention import Attention, read_attention
from .axes import NamedAxes, read_axes
from .communication.overlap import Overlap, read_overlap
from .memory.nanobatches import Nanobatches
from .memory.recompute import Recompute, read_recompute
from .memory.split import Split, read_split
from .mesh import Mesh, read_mesh
from .pipeline import Pipeline, read_pipeline
from .precision import Precision, read_precision
from .routing.experts import Experts, read_experts
from .schedule import WrittenSchedule, read_schedule
from .shard import ShardActivations, ShardBuffers, ShardInputs, ShardParameters, StoreParameters, read_shard, read_store
from .source import Source
from .syntax import unexpected_character, unexpected_token
from .zero import Zero, read_zero

Statement = (
    NamedAxes
    | ShardParameters
    | StoreParameters
    | Zero
    | Attention
    | Recompute
    | Split
    | Nanobatches
    | Experts
    | Overlap
    | ShardActivations
    | ShardInputs
    | ShardBuffers
    | Precision
    | Pipeline
    | WrittenSchedule
)
"""Any statement but `mesh`."""

READERS: dict[str, Callable[[Tree[Token], Source], Mesh | Statement]] = {
    "mesh": read_mesh,
    "axes": read_axes,
    "shard": read_shard,
    "store": read_store,
    "zero": read_zero,
    "attention": read_attention,
    "recompute": read_recompute,
    "split": read_split,
    "experts": read_experts,
    "overlap": read_overlap,
    "precision": read_precision,
    "pipeline": read_pipeline,
    "schedule": read_schedule,
}
"""By rule of the grammar, the function that reads its statement."""


@cache
def grammar() -> Lark:
    """The parser that `plan.lark` describes."""
    text = files(__package__).joinpath("plan.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr")


def parse_statements(source: Source) -> tuple[Mesh | Statement, ...]:
    """The statements in the order of the text. Raises PlanError at the first mistake."""
    try:
        tree = grammar().parse(source.text + "\n")
    except UnexpectedToken as error:
        raise unexpected_token(error.token, _accepted(error), source) from None
    except UnexpectedCharacters as error:
        raise unexpected_character(error.line, error.column, _accepted(error), source) from None
    return tuple(READERS[node.data](node, source) for node in tree.children if isinstance(node, Tree))


def _accepted(error: UnexpectedInput) -> frozenset[str]:
    """The terminals that the grammar allows at the error."""
    return frozenset(error.interactive_parser.accepts())  # type: ignore[no-untyped-call]  # lark leaves it untyped
