"""The orders that readings expect are those of the generators, which share no code with them."""

from __future__ import annotations

import pytest
from stretto.driver.readings.schedule_rows import published_order
from stretto.schedules.catalogue import generate
from stretto.schedules.request import Request

CHUNKS = {"gpipe": 1, "1f1b": 1, "zb-h1": 1, "zb-h2": 1, "interleaved": 2, "breadth-first": 3}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_published_order_is_the_one_that_is_generated(name: str) -> None:
    for ranks in (1, 2, 3, 5):
        for microbatches in (ranks, 2 * ranks, 4 * ranks):
            schedule = generate(name, Request(ranks, microbatches, CHUNKS[name]))
            for rank, tasks in enumerate(schedule.order):
                stages = range(rank, ranks * CHUNKS[name], ranks)
                expected = published_order(name, stages, rank, ranks, microbatches)
                assert [(each.kind.name, each.stage) for each in tasks] == expected


def test_a_schedule_that_searches_has_no_published_order() -> None:
    assert published_order("zb-auto", [0], 0, 2, 4) is None
    assert published_order("interleaved", [0, 2], 0, 2, 5) is None
