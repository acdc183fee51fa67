"""Which passes there are, by name: ours in one table, imported on use; others' by entry points of `stretto.passes`.

An entry point's name is the pass's name and its object the pass's class. `pass_class.py` imports it; to list the passes
takes neither torch nor MLIR.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import entry_points

from ..diagnostics import StrettoError

ENTRY_POINTS = "stretto.passes"

TABLE: dict[str, str] = {
    "assign-lanes": "overlap.assign_lanes:AssignLanes",
    "average-microbatches": "pipelining.average_microbatches:AverageMicrobatches",
    "bound-experts": "normalize.bound_experts:BoundExperts",
    "bucket-collectives": "overlap.bucket_collectives:BucketCollectives",
    "cap-experts": "normalize.cap_experts:CapExperts",
    "cap-memory": "overlap.cap_memory:CapMemory",
    "cast-gradients": "normalize.cast_gradients:CastGradients",
    "check-batch": "sharding.check_batch:CheckBatch",
    "choose-attention": "sharding.choose_attention:ChooseAttention",
    "cut-nanobatches": "nanobatches.cut_nanobatches:CutNanobatches",
    "cut-stages": "pipelining.cut_stages:CutStages",
    "expand-losses": "normalize.expand_losses:ExpandLosses",
    "find-blocks": "sharding.find_blocks:FindBlocks",
    "find-causal-masks": "masks.find_causal_masks:FindCausalMasks",
    "fold-layers": "layers.fold_layers:FoldLayers",
    "hoist-collectives": "overlap.hoist_collectives:HoistCollectives",
    "lower-idioms": "normalize.lower_idioms:LowerIdioms",
    "order-tasks": "pipelining.order_tasks:OrderTasks",
    "outline-idioms": "normalize.outline_idioms:OutlineIdioms",
    "partition-tensors": "partition.partition_tensors:PartitionTensors",
    "place-arguments": "sharding.place_arguments:PlaceArguments",
    "fuse-regions": "fusion.fuse_regions:FuseRegions",
    "exchange-experts": "sharding.exchange_experts:ExchangeExperts",
    "gather-parameters": "sharding.gather_parameters:GatherParameters",
    "propagate-placements": "sharding.propagate_placements:PropagatePlacements",
    "put-batch-first": "normalize.put_batch_first:PutBatchFirst",
    "ring-matmuls": "overlap.ring_matmuls:RingMatmuls",
    "recompute": "memory.recompute:Recompute",
    "raise-experts": "normalize.raise_experts:RaiseExperts",
    "raise-idioms": "normalize.raise_idioms:RaiseIdioms",
    "raise-matmuls": "normalize.raise_matmuls:RaiseMatmuls",
    "route-rows": "partition.route_rows:RouteRows",
    "keep-dims-apart": "normalize.keep_dims_apart:KeepDimsApart",
    "scatter-norms": "overlap.scatter_norms:ScatterNorms",
    "schedule-lanes": "overlap.schedule_lanes:ScheduleLanes",
    "simplify-views": "normalize.simplify_views:SimplifyViews",
    "split-all-reduce": "overlap.split_all_reduce:SplitAllReduce",
    "split-counts": "normalize.split_counts:SplitCounts",
    "split-loss": "memory.split_loss:SplitLoss",
    "split-means": "normalize.split_means:SplitMeans",
    "split-segments": "pipelining.split_segments:SplitSegments",
    "start-collectives": "overlap.start_collectives:StartCollectives",
    "unfold-layers": "layers.unfold_layers:UnfoldLayers",
    "use-local-statistics": "overlap.use_local_statistics:UseLocalStatistics",
}
"""The module of each of our passes inside this folder, and its class; the file has the pass's name with underscores."""

UPSTREAM = ("canonicalize", "cse", "symbol-dce", "remove-dead-values", "sccp", "strip-debuginfo")
"""Passes of upstream MLIR that pipelines may name."""


@cache
def _others() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def names() -> tuple[str, ...]:
    """Every pass that a pipeline may name, sorted."""
    return tuple(sorted({*TABLE, *_others(), *UPSTREAM}))


def place_of(name: str) -> str:
    """Where the class of a pass is that is not upstream's, as "module:class"; E0410 for an unknown name."""
    if name in TABLE:
        return f"{__package__}.{TABLE[name]}"
    if name not in _others():
        raise unknown_pass(name)
    return _others()[name]


def room(name: str) -> str:
    """The folder inside this one that a pass of ours lives in, such as "sharding"."""
    return TABLE[name].partition(".")[0]


def unknown_pass(name: str) -> StrettoError:
    """E0410 for a name that no pass has, with the nearest that one has."""
    near = difflib.get_close_matches(name, names(), 1)
    hint = f'did you mean "{near[0]}"?' if near else f"passes: {', '.join(names())}"
    return StrettoError("E0410", f'unknown pass "{name}"', help=hint)
