"""Large schedules are made and proved in seconds."""

from __future__ import annotations

import time

import pytest
from stretto.schedules import Request, generate, names, prove


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name != "auto"])
def test_64_stages_and_512_microbatches_take_less_than_ten_seconds(name: str) -> None:
    start = time.process_time()
    prove(generate(name, Request(64, 512)))
    assert time.process_time() - start < 10


@pytest.mark.slow
def test_a_large_schedule_within_a_cap_is_found_where_the_best_short_one_does_not_fit() -> None:
    assert prove(generate("auto", Request(16, 430, cap=20.0))).peak <= 20
