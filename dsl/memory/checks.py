"""What statements about memory must not say together."""

from __future__ import annotations

from collections.abc import Sequence

from ..error import MemoryCode, PlanError
from ..pipeline import Pipeline
from .nanobatches import Nanobatches
from .recompute import Recompute
from .split import Split


def check_memory(statements: Sequence[object], pipeline: Pipeline | None) -> None:
    """Raises PlanError for a second `split` (E0137), and for `recompute auto` beside a pipeline (E0135)."""
    _check_once([statement for statement in statements if isinstance(statement, Split)])
    _check_once([statement for statement in statements if isinstance(statement, Nanobatches)])
    for statement in statements:
        if isinstance(statement, Recompute) and statement.is_automatic and pipeline is not None:
            raise PlanError(  # its memory follows from its schedule, which is not known where `auto` chooses
                MemoryCode.BAD_RECOMPUTE,
                '"auto" chooses for a step without a pipeline',
                span=statement.span,
                notes=(("the pipeline is here", pipeline.span),),
                help="name modules or kinds of operations, such as attention",
            )


def _check_once(splits: Sequence[Split | Nanobatches]) -> None:
    """Raises PlanError E0137 for a second statement of a kind."""
    if len(splits) > 1:
        raise PlanError(
            MemoryCode.BAD_SPLIT,
            f'the plan has a second "split {splits[1].subject}"',
            span=splits[1].span,
            notes=(("the first is here", splits[0].span),),
            help="keep one of them",
        )
