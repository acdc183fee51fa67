"""What the passes of pipelines note on operations of `main` for each other."""

from __future__ import annotations

from ...ir.attributes import from_attribute, to_attribute
from ...ir.bindings import Operation
from ...schedules.schedule import Kind

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
