"""The issuing code: it gives the steps of a rank to a device. All devices are driven by it, and by it alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from .device import Device
from .steps import Mark, Step


def issue(steps: Sequence[Step], device: Device, *, capture: bool = False) -> None:
    """Issue the steps of a forward or backward, in order; with `capture`, each segment as a graph.

    An event is recorded behind each step for which another stream waits.
    """
    numbers = count()
    awaited = {place for step in steps for place in step.waits}
    events: dict[tuple[str, int], int] = {}
    for step in steps:
        for place in step.waits:
            device.wait(step.stream, events[place])
        for block in step.frees_before:
            device.free(block)
        begins = capture and step.mark is Mark.BEGIN and not step.waits
        if begins:
            device.begin_capture(step.stream)
        if step.mark is Mark.MEET and capture:
            device.end_capture(step.stream)
        if step.instruction is not None:
            device.launch(step)
        if (step.stream, step.number) in awaited:
            events[step.stream, step.number] = event = next(numbers)
            device.record(step.stream, event)
        for block in step.frees:
            device.free(block)
