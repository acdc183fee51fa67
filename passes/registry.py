"""Which passes there are, by name: ours in one table, imported on use; others' by entry points of `stretto.passes`.

An entry point's name is the pass's name and its object the pass's class.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from ..diagnostics import StrettoError
from .base import Pass

ENTRY_POINTS = "stretto.passes"

TABLE: dict[str, str] = {
    "average-microbatches": "AverageMicrobatches",
    "cast-gradients": "CastGradients",
    "cut-stages": "CutStages",
    "expand-losses": "ExpandLosses",
    "fold-layers": "FoldLayers",
    "hoist-collectives": "HoistCollectives",
    "lower-idioms": "LowerIdioms",
    "order-tasks": "OrderTasks",
    "partition-tensors": "PartitionTensors",
    "place-arguments": "PlaceArguments",
    "propagate-placements": "PropagatePlacements",
    "put-batch-first": "PutBatchFirst",
    "raise-idioms": "RaiseIdioms",
    "raise-matmuls": "RaiseMatmuls",
    "simplify-views": "SimplifyViews",
    "split-all-reduce": "SplitAllReduce",
    "split-counts": "SplitCounts",
    "split-means": "SplitMeans",
    "split-segments": "SplitSegments",
    "start-collectives": "StartCollectives",
    "unfold-layers": "UnfoldLayers",
    "use-local-statistics": "UseLocalStatistics",
}
"""The class of each of our passes; its module has the pass's name with underscores."""

UPSTREAM = ("canonicalize", "cse", "symbol-dce", "remove-dead-values", "sccp", "strip-debuginfo")
"""Passes of upstream MLIR that pipelines may name."""


@cache
def _others() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def names() -> tuple[str, ...]:
    """Every pass that a pipeline may name, sorted."""
    return tuple(sorted({*TABLE, *_others(), *UPSTREAM}))


def pass_class(name: str) -> type[Pass]:
    """The class of a pass that is not upstream's; E0410 for an unknown name, with the nearest."""
    if name in TABLE:
        module = import_module(f".{name.replace('-', '_')}", __package__)
        found = getattr(module, TABLE[name])
    elif name in _others():
        path, _, attribute = _others()[name].partition(":")
        found = getattr(import_module(path), attribute)
    else:
        raise unknown_pass(name)
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise StrettoError("E0411", f'the pass "{name}" is registered as {found!r}, which is no subclass of Pass')
    return found


def unknown_pass(name: str) -> StrettoError:
    """The error for a name that no pass has."""
    near = difflib.get_close_matches(name, names(), 1)
    hint = f'did you mean "{near[0]}"?' if near else f"passes: {', '.join(names())}"
    return StrettoError("E0410", f'unknown pass "{name}"', help=hint)
