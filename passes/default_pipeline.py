"""The passes of every compile, in named phases: the one place where a plan becomes options of passes.

To add a pass, write a line in its phase: the pass, or a function that makes it of what is asked, and when it runs.
A pass that a statement of the plan configures takes `plan`, or the statement's value where it is one word; it does
nothing without its statement, so that `stretto opt` can run it alone. What a pass has decided, later passes read from
the module (docs/adr/0011).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..dsl.plan import Plan
from .base import Pass
from .layers.fold_layers import FoldLayers
from .manager import Step
from .normalize.cast_gradients import CastGradients
from .normalize.expand_losses import ExpandLosses
from .normalize.lower_idioms import LowerIdioms
from .normalize.put_batch_first import PutBatchFirst
from .normalize.raise_idioms import RaiseIdioms
from .normalize.raise_matmuls import RaiseMatmuls
from .normalize.simplify_views import SimplifyViews
from .normalize.split_counts import SplitCounts
from .normalize.split_means import SplitMeans
from .overlap.hoist_collectives import HoistCollectives
from .overlap.start_collectives import StartCollectives
from .overlap.use_local_statistics import UseLocalStatistics
from .partition.partition_tensors import PartitionTensors
from .pipelining.average_microbatches import AverageMicrobatches
from .pipelining.cut_stages import CutStages
from .pipelining.order_tasks import OrderTasks
from .pipelining.split_segments import SplitSegments
from .sharding.place_arguments import PlaceArguments
from .sharding.propagate_placements import PropagatePlacements


@dataclass(frozen=True)
class Asked:
    """What decides which passes run and with which options: a plan, and how its program is to be used."""

    plan: Plan
    delay_reductions: bool = False
    """Leave the parameters' gradients unreduced, for steps that accumulate before they reduce."""
    keeps_formats: bool = True
    """Follow the float formats that the plan says; not where all floats are raised to float64 for a check."""
    padded_inputs: tuple[str, ...] = ()
    """Inputs that need not divide by their ranks."""


@dataclass(frozen=True)
class Line:
    """One pass of a phase, or a list of upstream's."""

    step: Step | Callable[[Asked], Pass]
    when: Callable[[Asked], bool] = lambda asked: True

    def made(self, asked: Asked) -> Step:
        """The pass with its options."""
        return self.step if isinstance(self.step, Pass | str) else self.step(asked)


def default_pipeline(asked: Asked) -> list[Step]:
    """The passes that a compile runs, in order."""
    return [step for steps in phases(asked).values() for step in steps]


def phases(asked: Asked) -> dict[str, list[Step]]:
    """The passes of each phase."""
    return {name: [line.made(asked) for line in lines if line.when(asked)] for name, lines in PHASES.items()}


def _pipelined(asked: Asked) -> bool:
    return asked.plan.pipeline is not None


def _per_microbatch(asked: Asked) -> bool:
    return asked.plan.pipeline is not None and asked.plan.pipeline.per_microbatch


def _place_arguments(asked: Asked) -> Pass:
    return PlaceArguments(asked.plan, ",".join(asked.padded_inputs))


def _cast_gradients(asked: Asked) -> Pass:
    precision = asked.plan.precision if asked.keeps_formats else None
    return CastGradients(precision.reduce if precision is not None else None)


def _propagate_placements(asked: Asked) -> Pass:
    return PropagatePlacements(asked.delay_reductions)


def _order_tasks(asked: Asked) -> Pass:
    return OrderTasks(asked.plan, asked.keeps_formats)


PHASES: Mapping[str, tuple[Line, ...]] = {
    # The plan's mesh and placements go on the module first: normalisation asks which dim is the batch.
    "annotate": (Line(_place_arguments),),
    # Tensors are whole and layers apart: here a graph is made to look the same however a model wrote it. Idioms come
    # first, because losses and means are parts of them; casts of gradients come before views are simplified.
    "normalize": (
        Line(RaiseIdioms()),
        Line(ExpandLosses()),
        Line(SplitCounts(), _pipelined),
        Line(SplitMeans()),
        Line(_cast_gradients),
        Line(RaiseMatmuls()),
        Line(PutBatchFirst(), _pipelined),
        Line(SimplifyViews()),
        Line("canonicalize"),
    ),
    # Behind normalisation, so that layers are equal; before placement, so that what follows costs by distinct layers.
    "fold": (Line(FoldLayers()),),
    # Every value gets a placement while idioms are still whole, because their sharding rules are simpler than those of
    # what they stand for. Shapes are global.
    "place": (Line(_propagate_placements),),
    # From here on a module is what one rank does, with its communication. Idioms have told their rules and go.
    "partition": (
        Line(PartitionTensors()),
        Line(LowerIdioms()),
        Line("canonicalize,cse,symbol-dce"),
    ),
    # Stages are cut in what a rank really computes, so that their costs count shards; the order of tasks needs
    # segments, and these need stages.
    "pipeline": (
        Line(lambda asked: AverageMicrobatches(asked.plan), _per_microbatch),
        Line(lambda asked: UseLocalStatistics(asked.plan), _pipelined),
        Line(lambda asked: CutStages(asked.plan), _pipelined),
        Line(lambda asked: SplitSegments(asked.plan), _pipelined),
        Line(_order_tasks, _pipelined),
        Line("symbol-dce", _pipelined),
    ),
    # Last, when all communication is there and tasks are in order: where each collective begins and is waited for.
    "overlap": (
        Line(HoistCollectives()),
        Line(StartCollectives()),
    ),
}
"""The phases in their order."""
