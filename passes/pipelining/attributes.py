"""Attributes by which the pipelining passes mark operations of `main` for each other, and checks of them."""

from __future__ import annotations

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...ir.attributes import from_attribute, to_attribute
from ...ir.bindings import Operation
from ...ir.module import Module, operations
from ...ir.pipelined_module import MICROBATCH, microbatches, pipeline_axis, rank_axes
from ...schedules.schedule import Kind
from .scheduled_pipeline import ScheduledPipeline

SHARED = -1
"""In place of a stage, for the segments of shared work."""
_STAGE = "stage"
_SEGMENT = "segment"
_BARRIER = "meeting"  # as IR text spells it


def mark_stage(op: Operation, stage: int) -> None:
    """Mark an operation with its virtual stage."""
    op.attributes[_STAGE] = to_attribute(stage)


def stage_of(op: Operation) -> int | None:
    """The virtual stage of a marked operation."""
    return int(from_attribute(op.attributes[_STAGE])) if _STAGE in op.attributes else None


def mark_segment(op: Operation, kind: Kind, stage: int) -> None:
    """Mark a call as a segment: one kind of a stage's work, or of shared work."""
    op.attributes[_SEGMENT] = to_attribute(kind.name)
    if stage != SHARED:
        mark_stage(op, stage)


def segment_of(op: Operation) -> tuple[Kind, int] | None:
    """The kind and stage of a call that is a segment."""
    if _SEGMENT not in op.attributes:
        return None
    stage = stage_of(op)
    return Kind[str(from_attribute(op.attributes[_SEGMENT]))], SHARED if stage is None else stage


def mark_barrier(op: Operation, kind: Kind) -> None:
    """Mark an operation as part of the barrier after the segments of a kind."""
    op.attributes[_BARRIER] = to_attribute(kind.name)


def barrier_of(op: Operation) -> Kind | None:
    """The kind of segments after which an operation's barrier runs."""
    return Kind[str(from_attribute(op.attributes[_BARRIER]))] if _BARRIER in op.attributes else None


def copy_marks(source: Operation, target: Operation) -> None:
    """Copy the marks of one operation to another."""
    for name in (_STAGE, _SEGMENT):
        if name in source.attributes:
            target.attributes[name] = source.attributes[name]


def check_microbatches(name: str, plan: Plan, module: Module) -> None:
    """Raise E0455 unless the module has a `main` with the plan's mesh and microbatches; `name` is the pass's."""
    pipeline = plan.pipeline
    assert pipeline is not None, "the pass has something to do"
    if pipeline_axis(module) is not None:
        raise _refused(name, "a module whose stages have entries of their own", "a module from before order-tasks")
    mesh = tuple(plan.mesh.axes)
    if rank_axes(module.mesh) != mesh or microbatches(module.mesh) != pipeline.microbatches:
        actual = f"of {microbatches(module.mesh)} microbatches on {_mesh(rank_axes(module.mesh))}"
        expected = f"{pipeline.microbatches} on {_mesh(mesh)}"
        raise _refused(name, f"a module {actual} where the plan has {expected}", "the module that this plan made")


def check_one_microbatch(name: str, plan: Plan, module: Module) -> None:
    """Raise E0455 unless the module has the plan's mesh without a microbatch axis; `name` is the pass's."""
    if MICROBATCH in dict(module.mesh) or pipeline_axis(module) is not None:
        raise _refused(name, "a module that has microbatches already", "the module of one microbatch")
    if module.mesh != tuple(plan.mesh.axes):
        raise _refused(name, f"a module on {_mesh(module.mesh)}", f"a module on {_mesh(tuple(plan.mesh.axes))}")


def check_stages(name: str, scheduled: ScheduledPipeline, module: Module) -> None:
    """Raise E0455 unless main's operations are marked with as many stages as the plan has, and not in segments yet."""
    marked = list(operations(module.functions()["main"]))
    if any(segment_of(op) is not None for op in marked):
        raise _refused(name, "a module that is in segments", "a module from before split-segments")
    _check_stage_count(name, scheduled, {stage for op in marked if (stage := stage_of(op)) is not None}, "cut-stages")


def check_segments(name: str, scheduled: ScheduledPipeline, module: Module) -> None:
    """Raise E0455 unless main is in segments, for the plan's number of stages and its schedule's kinds."""
    segments = [segment for op in operations(module.functions()["main"]) if (segment := segment_of(op)) is not None]
    _check_stage_count(name, scheduled, {stage for _, stage in segments if stage != SHARED}, "split-segments")
    if scheduled.delays_weights and any(kind is Kind.BW for kind, _ in segments):
        what = f'a module of whole backwards where the schedule "{scheduled.schedule.name}" parts them'
        raise _refused(name, what, "the module that split-segments made with this plan")


def _check_stage_count(name: str, scheduled: ScheduledPipeline, stages: set[int], pass_before: str) -> None:
    if not stages:
        raise _refused(name, f"a module from before {pass_before}", f"what {pass_before} makes")
    if max(stages) + 1 != scheduled.stages:
        what = f"a module of {max(stages) + 1} stages where the plan has {scheduled.stages}"
        raise _refused(name, what, f"the module that {pass_before} made with this plan")


def _refused(name: str, what: str, expected: str) -> StrettoError:
    return StrettoError(
        "E0455",
        f'pass "{name}" does not take {what}',
        expected=f"expected {expected}",
        help="run place-arguments to order-tasks in their order, with one plan; compile --dump-ir DIR writes the "
        "module before and after each pass",
    )


def _mesh(axes: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in axes) or "no mesh"
