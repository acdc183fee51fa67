"""What the passes of pipelines note on operations of `main` for each other."""

from __future__ import annotations

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...ir.attributes import from_attribute, to_attribute
from ...ir.bindings import Operation
from ...ir.module import Module, operations
from ...ir.pipelined_module import MICROBATCH, microbatches, pipeline_axis, rank_axes
from ...schedules.schedule import Kind
from .settings import Settings

SPREAD = -1
"""In place of a stage, for segments that every coordinate has a part of."""
_STAGE = "stage"
_SEGMENT = "segment"
_MEETING = "meeting"


def mark_stage(op: Operation, stage: int) -> None:
    """Say which virtual stage an operation belongs to."""
    op.attributes[_STAGE] = to_attribute(stage)


def stage_of(op: Operation) -> int | None:
    """The virtual stage that an operation is marked with."""
    return int(from_attribute(op.attributes[_STAGE])) if _STAGE in op.attributes else None


def mark_segment(op: Operation, kind: Kind, stage: int) -> None:
    """Say that a call is a segment: one kind of a stage's work, or of what every coordinate has a part of."""
    op.attributes[_SEGMENT] = to_attribute(kind.name)
    if stage != SPREAD:
        mark_stage(op, stage)


def segment_of(op: Operation) -> tuple[Kind, int] | None:
    """What a call is marked as."""
    if _SEGMENT not in op.attributes:
        return None
    stage = stage_of(op)
    return Kind[str(from_attribute(op.attributes[_SEGMENT]))], SPREAD if stage is None else stage


def mark_meeting(op: Operation, kind: Kind) -> None:
    """Say that an operation is done when all coordinates have done a segment of a kind."""
    op.attributes[_MEETING] = to_attribute(kind.name)


def meeting_of(op: Operation) -> Kind | None:
    """The kind of segment behind which an operation is done, by all coordinates together."""
    return Kind[str(from_attribute(op.attributes[_MEETING]))] if _MEETING in op.attributes else None


def copy_marks(source: Operation, target: Operation) -> None:
    """Give one operation the marks of another."""
    for name in (_STAGE, _SEGMENT):
        if name in source.attributes:
            target.attributes[name] = source.attributes[name]


def check_cut_over_time(name: str, plan: Plan, module: Module) -> None:
    """Raise E0455 unless the module has a `main` that is cut over time as the plan says; `name` is the pass's."""
    said = plan.pipeline
    assert said is not None, "the pass has something to do"
    if pipeline_axis(module) is not None:
        raise _refused(name, "a module whose stages have entries of their own", "a module from before order-tasks")
    mesh = tuple(plan.mesh.axes)
    if rank_axes(module.mesh) != mesh or microbatches(module.mesh) != said.microbatches:
        found = f"of {microbatches(module.mesh)} microbatches on {_mesh(rank_axes(module.mesh))}"
        wanted = f"{said.microbatches} on {_mesh(mesh)}"
        raise _refused(name, f"a module {found} where the plan has {wanted}", "the module that this plan made")


def check_one_microbatch(name: str, plan: Plan, module: Module) -> None:
    """Raise E0455 unless the module is cut for the plan's ranks and not over time; `name` is the pass's."""
    if MICROBATCH in dict(module.mesh) or pipeline_axis(module) is not None:
        raise _refused(name, "a module that is cut over time already", "the module of one microbatch")
    if module.mesh != tuple(plan.mesh.axes):
        raise _refused(name, f"a module on {_mesh(module.mesh)}", f"a module on {_mesh(tuple(plan.mesh.axes))}")


def check_stages(name: str, settings: Settings, module: Module) -> None:
    """Raise E0455 unless the operations of main are cut into as many stages as the plan has, and are in no segments."""
    marked = list(operations(module.functions()["main"]))
    if any(segment_of(op) is not None for op in marked):
        raise _refused(name, "a module that is in segments", "a module from before split-segments")
    _check_number(name, settings, {stage for op in marked if (stage := stage_of(op)) is not None}, "cut-stages")


def check_segments(name: str, settings: Settings, module: Module) -> None:
    """Raise E0455 unless main is in segments, of as many stages as the plan has and of the kinds that it orders."""
    found = [each for op in operations(module.functions()["main"]) if (each := segment_of(op)) is not None]
    _check_number(name, settings, {stage for _, stage in found if stage != SPREAD}, "split-segments")
    if settings.delays_weights and any(kind is Kind.BW for kind, _ in found):
        what = f'a module of whole backwards where the schedule "{settings.schedule.name}" parts them'
        raise _refused(name, what, "the module that split-segments made with this plan")


def _check_number(name: str, settings: Settings, found: set[int], before: str) -> None:
    if not found:
        raise _refused(name, f"a module from before {before}", f"what {before} makes")
    if max(found) + 1 != settings.stages:
        what = f"a module of {max(found) + 1} stages where the plan has {settings.stages}"
        raise _refused(name, what, f"the module that {before} made with this plan")


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
