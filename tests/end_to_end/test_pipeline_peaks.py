"""Peak activations as published, counted on compiled programs: whose forwards' results wait for a backward at once."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import pytest
import torch
from stretto.frontend.captured import Capture
from stretto.runtime.program.program import Program
from stretto.schedules import Costs, Request, generate
from stretto.schedules.figures import peaks

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


@cache
def step() -> tuple[Staged, Capture]:
    torch.manual_seed(0)
    staged = skipping()
    return staged, captured(staged)


def held(program: Program) -> tuple[float, ...]:
    """For each rank the most microbatches of which a forward has left something for a backward, by chunk."""
    found = []
    assert program.pipeline is not None
    for name in program.pipeline.entries:
        calls = [each for each in program.functions[name].code if each.op == "call"]
        forwards = [each for each in calls if str(each.args[0]).startswith("forward_")]
        wanted = {slot for each in calls if each not in forwards for slot in each.reads()}
        task_of = {slot: each for each in forwards for slot in each.writes() if slot in wanted}
        alive: dict[int, set[int]] = defaultdict(set)
        most = 0
        for each in program.functions[name].code:
            for slot in each.writes():
                if slot in task_of:
                    alive[id(each)].add(slot)
            most = max(most, sum(map(bool, alive.values())))
            for slot in each.free:
                if slot in task_of:
                    alive[id(task_of[slot])].discard(slot)
        assert not any(alive.values()), "something is never freed"
        found.append(most / len({each.args[0] for each in forwards}))
    return tuple(found)


@pytest.mark.parametrize("schedule", PUBLISHED)
def test_no_more_waits_for_backwards_than_is_published(schedule: str) -> None:
    said = f"mesh (pp={P})\npipeline over pp {{ schedule {schedule}  microbatches {M}  times 1, 1, 1, 0 }}"
    program = compiled(*step(), said)
    found = held(program)
    assert found == peaks(generate(schedule, Request(P, M, costs=Costs(1, 1, 1, 0))))
    assert max(found) <= PUBLISHED[schedule]
