"""Lanes: the attribute `lane = "NAME"` of an operation says which sequence of work on a rank runs it.

Without it a collective's or receive's start is on the lane "comm", all else on "compute". A call has none: what it runs
has. Lanes change no values: interpreters run operations in program order.
"""

from __future__ import annotations

import re

from .attributes import from_attribute, to_attribute
from .bindings import Operation

LANE = "lane"
"""The attribute."""

_NAME = re.compile(r"[a-z][a-z0-9_.]{0,30}")


def lane_of(op: Operation) -> str:
    """The lane that an operation names; empty where it has that of its kind."""
    return str(from_attribute(op.attributes[LANE])) if LANE in op.attributes else ""


def set_lane(op: Operation, lane: str) -> None:
    """Name the lane of an operation; empty leaves it as it is."""
    if lane:
        op.attributes[LANE] = to_attribute(lane)


def lane_problem(op: Operation) -> str:
    """What is wrong with the lane that an operation names; empty if nothing."""
    lane = from_attribute(op.attributes[LANE])
    if not isinstance(lane, str) or _NAME.fullmatch(lane) is None:
        return f"{lane!r} is not a lane: expected a short name of small letters, digits, dots and underscores"
    if op.operation.name.startswith("func."):
        return f'it is on lane "{lane}", but a call has no lane: name those of the operations that it runs'
    return ""
