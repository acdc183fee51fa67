"""The passes of every compile, in named phases: the one place where a plan becomes options of passes.

To add a pass, write an entry in its phase: the pass, or a function from the config to the pass, and when it runs.
A pass that a statement configures has the option `plan`, or the statement's value where that is one word. Without its
statement it does nothing, so `stretto opt` can run it alone. What a pass decides, later passes read from the module
(docs/adr/0011).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..dsl.communication.overlap import NORMS, RINGS
from ..dsl.memory.nanobatches import OrderOfNanobatches
from ..dsl.plan import Plan
from ..dsl.routing.experts import Move
from .base import Pass
from .fusion.fuse_regions import FuseRegions
from .layers.fold_layers import FoldLayers
from .manager import Step
from .masks.find_causal_masks import FindCausalMasks
from .memory.recompute import Recompute
from .memory.split_loss import SplitLoss
from .nanobatches.cut_nanobatches import CutNanobatches
from .normalize.bound_experts import BoundExperts
from .normalize.cap_experts import CapExperts
from .normalize.cast_gradients import CastGradients
from .normalize.expand_losses import ExpandLosses
from .normalize.idioms.whole import WHOLE
from .normalize.keep_dims_apart import KeepDimsApart
from .normalize.lower_idioms import LowerIdioms
from .normalize.outline_idioms import OutlineIdioms
from .normalize.put_batch_first import PutBatchFirst
from .normalize.raise_experts import RaiseExperts
from .normalize.raise_idioms import RaiseIdioms
from .normalize.raise_matmuls import RaiseMatmuls
from .normalize.simplify_views import SimplifyViews
from .normalize.split_counts import SplitCounts
from .normalize.split_means import SplitMeans
from .overlap.assign_lanes import AssignLanes
from .overlap.bucket_collectives import BucketCollectives
from .overlap.cap_memory import CapMemory
from .overlap.hoist_collectives import HoistCollectives
from .overlap.ring_matmuls import RingMatmuls
from .overlap.scatter_norms import ScatterNorms
from .overlap.schedule_lanes import ScheduleLanes
from .overlap.start_collectives import StartCollectives
from .overlap.use_local_statistics import UseLocalStatistics
from .partition.partition_tensors import PartitionTensors
from .partition.route_rows import RouteRows
from .pipelining.average_microbatches import AverageMicrobatches
from .pipelining.cut_stages import CutStages
from .pipelining.order_tasks import OrderTasks
from .pipelining.split_segments import SplitSegments
from .sharding.check_batch import CheckBatch
from .sharding.choose_attention import ChooseAttention
from .sharding.exchange_experts import ExchangeExperts
from .sharding.find_blocks import FindBlocks
from .sharding.gather_parameters import GatherParameters
from .sharding.place_arguments import PlaceArguments
from .sharding.propagate_placements import PropagatePlacements


@dataclass(frozen=True)
class PipelineConfig:
    """What decides which passes run, and with which options: the plan, and what its program is for."""

    plan: Plan
    delay_reductions: bool = False
    """Leave the parameters' gradients unreduced, for steps that accumulate before they reduce."""
    follow_precision: bool = True
    """Apply the plan's `precision` and `transfer`; not when a check raises all floats to float64."""
    padded_inputs: tuple[str, ...] = ()
    """Inputs that need not divide by their ranks."""
    sizes_vary: bool = False
    """Whether the program is to hold for other sizes than the module's: `cap-memory` runs only where the plan asks."""
    memory_margin: int = 0
    """By how many bytes `recompute auto` is to stay below its memory, which it estimates."""
    kinds: tuple[str, ...] = WHOLE
    """The idioms that become functions with a kind."""
    fuse_regions: bool = False
    """Whether chains of small operations become functions with a kind, for a target that has kernels for them."""


@dataclass(frozen=True)
class Entry:
    """One pass of a phase, or a list of MLIR's own."""

    step: Step | Callable[[PipelineConfig], Pass]
    when: Callable[[PipelineConfig], bool] = lambda config: True

    def made(self, config: PipelineConfig) -> Step:
        """The pass with its options."""
        return self.step if isinstance(self.step, Pass | str) else self.step(config)


def default_pipeline(config: PipelineConfig) -> list[Step]:
    """The passes that a compile runs, in order."""
    return [step for steps in phases(config).values() for step in steps]


def phases(config: PipelineConfig) -> dict[str, list[Step]]:
    """The passes of each phase."""
    return {name: [entry.made(config) for entry in entries if entry.when(config)] for name, entries in PHASES.items()}


def _pipelined(config: PipelineConfig) -> bool:
    return config.plan.pipeline is not None


def _stores(config: PipelineConfig) -> bool:
    moved = any(statement.move is Move.WEIGHTS for statement in config.plan.experts)
    return bool(config.plan.stored) or moved


def _buckets(config: PipelineConfig) -> bool:
    return config.plan.bucket > 0


def _shards_parameters(config: PipelineConfig) -> bool:
    return bool(config.plan.parameters or config.plan.experts)


def _cuts_experts(config: PipelineConfig) -> bool:
    return bool(config.plan.experts)


def _caps_experts(config: PipelineConfig) -> bool:
    return any(statement.capacity is not None for statement in config.plan.experts)


def _recomputes(config: PipelineConfig) -> bool:
    return bool(config.plan.recomputed) or config.plan.split is not None


def _splits_loss(config: PipelineConfig) -> bool:
    return config.plan.split is not None


def _cuts_nanobatches(config: PipelineConfig) -> bool:
    return config.plan.nanobatches is not None


def _per_microbatch(config: PipelineConfig) -> bool:
    return config.plan.pipeline is not None and config.plan.pipeline.per_microbatch


def _cuts_attention(config: PipelineConfig) -> bool:
    return bool(config.plan.attention)


def _place_arguments(config: PipelineConfig) -> Pass:
    return PlaceArguments(config.plan, ",".join(config.padded_inputs))


def _check_batch(config: PipelineConfig) -> Pass:
    return CheckBatch(config.plan)


def _cast_gradients(config: PipelineConfig) -> Pass:
    precision = config.plan.precision if config.follow_precision else None
    stored = config.plan.stored_reduce if config.follow_precision else None
    return CastGradients(precision.reduce if precision is not None else None, stored)


def _propagate_placements(config: PipelineConfig) -> Pass:
    return PropagatePlacements(config.delay_reductions)


def _moves(config: PipelineConfig) -> bool:
    return bool(config.plan.overlap.moved)


def _fuses_rings(config: PipelineConfig) -> bool:
    return not {*RINGS}.isdisjoint(config.plan.overlap.fuse)


def _fuses_norms(config: PipelineConfig) -> bool:
    return not {*NORMS}.isdisjoint(config.plan.overlap.fuse)


def _names_lanes(config: PipelineConfig) -> bool:
    return bool(config.plan.overlap.own_lanes)


def _caps(config: PipelineConfig) -> bool:
    """One program for many sizes cannot choose by bytes."""
    said = config.plan.overlap
    return said.memory is not None or bool(said.growth) or (_moves(config) and not config.sizes_vary)


def _schedules(config: PipelineConfig) -> bool:
    """Behind `cap-memory`, whose peak it keeps."""
    return _moves(config) and _caps(config)


def _cap_memory(config: PipelineConfig) -> Pass:
    return CapMemory(config.plan, config.follow_precision)


def _kinds(config: PipelineConfig) -> str:
    return ",".join(config.plan.overlap.moved) or "none"


def _hoist_collectives(config: PipelineConfig) -> Pass:
    nanobatches = config.plan.nanobatches
    in_sequence = nanobatches is not None and nanobatches.order is OrderOfNanobatches.SEQUENCE
    return HoistCollectives(config.plan.prefetch, _kinds(config), once=in_sequence)


def _start_collectives(config: PipelineConfig) -> Pass:
    return StartCollectives(max_calls=config.plan.prefetch, kinds=_kinds(config))


def _order_tasks(config: PipelineConfig) -> Pass:
    return OrderTasks(config.plan, config.follow_precision)


PHASES: Mapping[str, tuple[Entry, ...]] = {
    # First, because `put-batch-first` reads the batch's extent from the module.
    "annotate": (Entry(_place_arguments),),
    # On global tensors, forward and backward of a layer as one function: equal computations get equal ops, more of
    # which can be sharded. Idioms come first, because the passes after them rewrite the ops they are recognised by.
    "normalize": (
        Entry(RaiseIdioms()),
        Entry(RaiseExperts()),
        Entry(lambda config: BoundExperts(config.plan), _cuts_experts),
        Entry(lambda config: CapExperts(config.plan), _caps_experts),
        Entry(ExpandLosses()),
        Entry(SplitCounts(), _pipelined),
        Entry(SplitMeans()),
        Entry(_cast_gradients),
        Entry(RaiseMatmuls()),
        Entry(KeepDimsApart()),
        Entry(PutBatchFirst(), _pipelined),
        Entry(SimplifyViews()),
        Entry("canonicalize"),
    ),
    # Before layers are folded for good: a parameter's blocks are those of all its uses.
    "blocks": (Entry(FindBlocks(), _shards_parameters),),
    # After normalisation, which makes layers equal; before placement, so that later passes cost per distinct layer.
    "fold": (Entry(FoldLayers()),),
    # On global tensors, whose rows are chunks of one dim; behind folding, which leaves the head and the loss in main.
    "chunk": (Entry(lambda config: SplitLoss(config.plan), _splits_loss),),
    # While idioms are still single ops: an idiom has one sharding rule, its expansion would need many.
    # The check follows normalisation, after which more dims are seen to go together.
    # Masks first: one that goes needs no placement.
    "place": (
        Entry(FindCausalMasks()),
        Entry(_check_batch),
        Entry(lambda config: ChooseAttention(config.plan), _cuts_attention),
        Entry(GatherParameters(), _stores),
        Entry(lambda config: ExchangeExperts(config.plan), _cuts_experts),
        Entry(_propagate_placements),
    ),
    # From here on the module is one rank's program, with collectives. Idioms are no longer needed, but for those that a
    # target may have kernels of its own for: they stay single operations to the end.
    "partition": (
        Entry(PartitionTensors()),
        Entry(RouteRows()),
        Entry(lambda config: CutNanobatches(config.plan), _cuts_nanobatches),
        Entry(lambda config: ScatterNorms(config.plan), _fuses_norms),
        Entry(lambda config: LowerIdioms(keep=",".join(config.kinds))),
        Entry(SimplifyViews()),
        Entry("canonicalize,cse,symbol-dce"),
    ),
    # Behind `cse`, when it is known what is kept; before segments are cut, which then hold what runs again.
    "memory": (Entry(lambda config: Recompute(config.plan, config.memory_margin), _recomputes),),
    # On local tensors, so that stages are balanced by what a rank computes. Tasks need segments, segments need stages.
    "pipeline": (
        Entry(lambda config: AverageMicrobatches(config.plan), _per_microbatch),
        Entry(lambda config: UseLocalStatistics(config.plan), _pipelined),
        Entry(lambda config: CutStages(config.plan), _pipelined),
        Entry(lambda config: SplitSegments(config.plan), _pipelined),
        Entry(_order_tasks, _pipelined),
        Entry("symbol-dce", _pipelined),
    ),
    # Last, when all communication is there and tasks have their order.
    "overlap": (
        Entry(lambda config: RingMatmuls(config.plan), _fuses_rings),
        Entry(_hoist_collectives, _moves),
        Entry(lambda config: BucketCollectives(config.plan.bucket, "all_gather,reduce_scatter,all_reduce"), _buckets),
        Entry(lambda config: AssignLanes(",".join(config.plan.overlap.own_lanes)), _names_lanes),
        Entry(_start_collectives),
        Entry(_cap_memory, _caps),
        Entry(lambda config: ScheduleLanes(_kinds(config)), _schedules),
    ),
    # When nothing looks at idioms as operations any more.
    "outline": (
        Entry(lambda config: OutlineIdioms(",".join(config.kinds))),
        Entry(FuseRegions(), lambda config: config.fuse_regions),
    ),
}
"""The phases in their order."""
