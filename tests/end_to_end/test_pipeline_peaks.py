"""Peak activations as published, counted on compiled programs: forwards whose results wait for a backward."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import pytest
import torch
from stretto.frontend.captured import Capture
from stretto.runtime.program.program import Program
from stretto.schedules import Costs, Request, generate
from stretto.schedules.figures import peaks

from ..subsets import only
from .staged_models import Staged, captured, compiled, skipping

P, M = 4, 8
PUBLISHED = {
    "gpipe": M,
    "1f1b": P,
    "interleaved": P + (P - 1) / 2,
    "breadth-first": M,
    "zb-h1": P,
    "zb-h2": 2 * P - 1,
    "zb-auto": P,
    "zb-v": P,
    "v-half": P / 2 + 1,
    "v-min": P / 3 + 2,
    "dualpipe-v": P + 1 / 2,
}
"""The most that a rank holds, in activations of one microbatch on all its stages; as `docs/pipelines.md` has it.

The constants that papers leave open are 1 for V-Half and 2 for V-Min.
"""

DEFAULT = ("1f1b", "interleaved", "zb-h1", "zb-v", "v-half", "dualpipe-v")
"""The schedules of the default run."""


@cache
def step() -> tuple[Staged, Capture]:
    torch.manual_seed(0)
    staged = skipping()
    return staged, captured(staged)


def peak_activations(program: Program) -> tuple[float, ...]:
    """For each rank the most microbatches of which a forward has left something for a backward, by chunk."""
    peaks = []
    assert program.pipeline is not None
    for name in program.pipeline.entries:
        calls = [instruction for instruction in program.functions[name].code if instruction.op == "call"]
        forwards = [call for call in calls if str(call.args[0]).startswith("forward_")]
        wanted = {slot for call in calls if call not in forwards for slot in call.reads()}
        task_of = {slot: call for call in forwards for slot in call.writes() if slot in wanted}
        alive: dict[int, set[int]] = defaultdict(set)
        most = 0
        for instruction in program.functions[name].code:
            for slot in instruction.writes():
                if slot in task_of:
                    alive[id(instruction)].add(slot)
            most = max(most, sum(map(bool, alive.values())))
            for slot in instruction.free:
                if slot in task_of:
                    alive[id(task_of[slot])].discard(slot)
        assert not any(alive.values()), "something is never freed"
        peaks.append(most / len({call.args[0] for call in forwards}))
    return tuple(peaks)


@pytest.mark.parametrize("schedule", only(DEFAULT, PUBLISHED))
def test_no_more_waits_for_backwards_than_is_published(schedule: str) -> None:
    text = f"mesh (pp={P})\npipeline over pp {{ schedule {schedule}  microbatches {M}  times 1, 1, 1, 0 }}"
    program = compiled(*step(), text)
    result = peak_activations(program)
    assert result == peaks(generate(schedule, Request(P, M, costs=Costs(1, 1, 1, 0))))
    assert max(result) <= PUBLISHED[schedule]
