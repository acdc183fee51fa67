"""Bubbles and peaks as published: closed forms, and the figures of the searches of others."""

from __future__ import annotations

import pytest
from stretto.schedules import Costs, Figures, Request, generate, prove

EQUAL = Costs(1, 1, 1)
SIZES = ((2, 4), (4, 8), (8, 24), (8, 32))

SEARCHED = [
    (4, 8, (100, 100, 100, 0), {"zb-auto": 0.1111, "zb-auto 2p": 0.0, "zb-v": 0.0, "v-half": 0.0943, "v-min": 0.1864}),
    (8, 24, (100, 100, 100, 0), {"zb-auto": 0.0886, "zb-auto 2p": 0.0, "zb-v": 0.0, "v-half": 0.1056, "v-min": 0.1579}),
    (8, 32, (100, 100, 100, 0), {"zb-auto": 0.0680, "zb-auto 2p": 0.0, "zb-v": 0.0, "v-half": 0.0813, "v-min": 0.1233}),
    (4, 8, (100, 110, 80, 10), {"zb-auto": 0.1802, "zb-auto 2p": 0.0607, "v-half": 0.1888, "v-min": 0.3538}),
    (8, 24, (100, 110, 80, 10), {"zb-auto": 0.1460, "zb-auto 2p": 0.0156, "v-half": 0.1763, "v-min": 0.3504}),
]
"""Bubbles by span that the solvers published with arXiv 2401.10241 and 2405.15362 give for f, b, w, c.

Those of zb-auto are theirs with memory p and 2 p. In their model half of the activations live until W.
"""


def measured(name: str, ranks: int, microbatches: int, costs: Costs = EQUAL, **more: int | float | None) -> Figures:
    schedule = generate(name, Request(ranks, microbatches, costs=costs, **more))  # type: ignore[arg-type]
    return prove(schedule, costs)


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
@pytest.mark.parametrize("costs", [EQUAL, Costs(1, 1.5, 0.5), Costs(3, 2, 4)])
def test_1f1b_and_gpipe_idle_for_all_but_one_rank_of_a_microbatch(ranks: int, microbatches: int, costs: Costs) -> None:
    """(p - 1)(f + b + w). Source: arXiv 2401.10241, table 1."""
    for name in ("gpipe", "1f1b"):
        bubble = (ranks - 1) / (microbatches + ranks - 1)
        assert measured(name, ranks, microbatches, costs).bubble_by_makespan == pytest.approx(bubble, abs=1e-9)


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
@pytest.mark.parametrize("chunks", [2, 3, 4])
@pytest.mark.parametrize("name", ["interleaved", "breadth-first"])
def test_chunks_divide_the_bubble(name: str, ranks: int, microbatches: int, chunks: int) -> None:
    """(p - 1)(f + b + w) / v. Sources: arXiv 2104.04473, section 2.2; arXiv 2211.05953, section 4."""
    actual = measured(name, ranks, microbatches, Costs(1, 1.5, 0.5), chunks=chunks)
    assert actual.makespan == pytest.approx(3 * (microbatches + (ranks - 1) / chunks), abs=1e-9)


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_zb_h1_has_a_third_of_the_bubble_in_the_same_memory(ranks: int, microbatches: int) -> None:
    """(p - 1)(f + b - w), peak p. Source: arXiv 2401.10241, table 1."""
    actual = measured("zb-h1", ranks, microbatches)
    assert actual.longest_span == pytest.approx(3 * microbatches + ranks - 1, abs=1e-9)
    assert actual.makespan == pytest.approx(3 * microbatches + ranks - 1, abs=1e-9)
    assert actual.peak == ranks


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_zb_h2_has_no_bubble_by_span_in_twice_the_memory(ranks: int, microbatches: int) -> None:
    """(p - 1)(f + b - 2 w), peak 2 p - 1. Source: arXiv 2401.10241, table 1."""
    actual = measured("zb-h2", ranks, microbatches)
    assert actual.bubble_by_span == pytest.approx(0, abs=1e-9)
    assert actual.peak == 2 * ranks - 1


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
@pytest.mark.parametrize("costs", [EQUAL, Costs(1, 1, 1, fb=3.0), Costs(2, 2, 2, fb=6.0)])
def test_dualpipe_v_idles_as_published(ranks: int, microbatches: int, costs: Costs) -> None:
    """(P / 2 - 1)(fb + B - 3 W) with P = 2 p virtual stages and B = b + w of one. Source: the README of DualPipe."""
    actual = measured("dualpipe-v", ranks, microbatches, costs)
    pair, backward, weight = costs.whole / 2, (costs.b + costs.w) / 2, costs.w / 2
    idle = actual.makespan - microbatches * costs.whole
    assert idle == pytest.approx((ranks - 1) * (pair + backward - 3 * weight), abs=1e-9)
    assert actual.peak == ranks + 0.5


def test_an_overlapped_pair_is_one_piece_of_work() -> None:
    slow, fast = (measured("dualpipe-v", 4, 16, Costs(1, 1, 1, fb=fb)).makespan for fb in (3.0, 2.4))
    assert fast < slow


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES[:3])
@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("gpipe", lambda p, m: m),
        ("1f1b", lambda p, m: p),
        ("interleaved", lambda p, m: p + (p - 1) / 2),
        ("breadth-first", lambda p, m: m),
        ("zb-auto", lambda p, m: p),
        ("zb-v", lambda p, m: p),
        ("v-half", lambda p, m: p / 2 + 1),
        ("v-min", lambda p, m: p / 3 + 4 / 3),
        ("forward-only", lambda p, m: 1),
    ],
)
def test_peaks_are_those_published(name: str, peak: object, ranks: int, microbatches: int) -> None:
    """Where W keeps all activations alive. Sources: the catalogue's."""
    assert measured(name, ranks, microbatches).peak <= peak(ranks, microbatches) + 1e-9  # type: ignore[operator]


@pytest.mark.parametrize(("ranks", "microbatches", "times", "row"), SEARCHED)
def test_searches_find_at_most_the_bubbles_of_the_published_solvers(
    ranks: int, microbatches: int, times: tuple[float, float, float, float], row: dict[str, float]
) -> None:
    costs = Costs(*times, kept=0.5)
    for name, bubble in row.items():
        cap = 2.0 * ranks if name.endswith("2p") else None
        actual = measured(name.split()[0], ranks, microbatches, costs, cap=cap)
        assert actual.bubble_by_span <= bubble + 1e-4, (name, actual)
        bound = cap or {"v-half": ranks / 2 + 1, "v-min": ranks / 3 + 4 / 3}.get(name, ranks)
        assert actual.peak <= bound + 1e-9, (name, actual)


def test_zb_v_with_a_search_beats_the_published_solver_where_times_differ() -> None:
    """Source: as `SEARCHED`; 0.0902 in memory p."""
    actual = measured("zb-v", 4, 8, Costs(100, 110, 80, 10), tries=1500)
    assert actual.bubble_by_span <= 0.0902 and actual.peak <= 4


@pytest.mark.slow
def test_zb_v_with_a_long_search_beats_the_published_solver_on_eight_ranks() -> None:
    """Source: as `SEARCHED`; 0.0769 in memory p."""
    actual = measured("zb-v", 8, 24, Costs(100, 110, 80, 10, kept=0.5), tries=6000)
    assert actual.bubble_by_span <= 0.0769 and actual.peak <= 8


@pytest.mark.parametrize("cap", [2.0, 3.0, 4.0, 8.0])
def test_auto_is_never_worse_than_the_best_named_schedule_within_the_cap(cap: float) -> None:
    costs = Costs(100, 110, 80, 10)
    named = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-auto", "zb-v", "v-half", "v-min", "dualpipe-v")
    figures = [measured(name, 4, 8, costs) for name in named]
    actual = measured("auto", 4, 8, costs, cap=cap, tries=20)
    assert actual.peak <= cap
    assert actual.makespan <= min(figure.makespan for figure in figures if figure.peak <= cap)


def test_a_search_gives_the_same_schedule_again() -> None:
    request = Request(3, 5, costs=Costs(1, 1.2, 0.8, 0.1), tries=50)
    assert generate("auto", request) == generate("auto", request)
