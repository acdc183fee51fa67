"""What a plan says of a model's stages: the modules at whose first operation a stage begins."""

from __future__ import annotations

from collections.abc import Iterable

from . import globs
from .error import PlanCode, PlanError
from .pipeline import Pipeline
from .spelling import listed


def resolve_split(pipeline: Pipeline, stages: int, modules: Iterable[str]) -> tuple[str, ...]:
    """The modules that `split` means, in the order of `modules`, which are the model's; none where it says nothing.

    There are `stages` - 1 of them: the first stage begins where the model does. Raises PlanError for a pattern that
    matches no module (E0114), and where they make another number of stages (E0127).
    """
    if not pipeline.split:
        return ()
    known = tuple(dict.fromkeys(name for name in modules if name))
    for index, pattern in enumerate(pipeline.split):
        if not any(globs.matches(pattern, name) for name in known):
            near = [f'"{text}"' for text in globs.nearest_patterns(pattern, known)]
            raise PlanError(
                PlanCode.NO_MATCH,
                f'"{pattern}" matches no module',
                span=pipeline.places.pattern(index),
                help=f"did you mean {listed(near)}?" if near else "",
            )
    found = tuple(name for name in known if any(globs.matches(pattern, name) for pattern in pipeline.split))
    if len(found) != stages - 1:
        shown = ", ".join(found[:4]) + (", .." if len(found) > 4 else "")
        raise PlanError(
            PlanCode.SPLIT,
            f'"split" names {len(found)} module{"" if len(found) == 1 else "s"} ({shown}), which begin '
            f"{len(found) + 1} stages, but the schedule has {stages}",
            span=pipeline.span_of("split"),
            expected=f"expected {stages - 1}: the first stage begins where the model does",
            help='name one module for each further stage, or leave "split" out to have them balanced',
        )
    return found
