"""Schedules by search: zb-auto, zb-v, the memory caps of v-half and v-min, and list scheduling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

from ..error import ScheduleCode, ScheduleError
from ..figures import Measure, peaks
from ..request import Request, rank_candidates
from ..schedule import Schedule, loop_placement, v_placement
from .building_blocks import Offsets, most_waiting, repeated, squeezed
from .list_scheduler import First, Policy, list_schedule
from .local_search import improve
from .one_chunk import zb_h1, zb_h2
from .v_shaped import zbv_by_hand
from .weave import weave

_GAPS = (0.0, 0.5, 0.75, 1.0)
_V_GAPS = (0.0, 0.25, 0.6, 0.75, 1.0)
_TOLERANCE = 1e-9
_STARTS = 2
"""The local search starts from this many of the best schedules: the best one alone may be a local optimum."""

Maker = Callable[[Request], Schedule | None]
"""Makes a schedule for a request; None if it cannot."""


def best_schedule(name: str, request: Request, cap: float, makers: list[Maker], measure: Measure) -> Schedule:
    """The best schedule of the makers, improved by local search.

    For a large request the makers are compared on fewer microbatches.
    Raises ScheduleError E0441 if no maker gives a schedule within the cap.
    """
    measure = request.measure or measure
    if request.is_large:
        schedules = _first_within_cap(_rank_makers(request.shorter(), cap, makers, measure), request, cap)
    else:
        candidates = (_try_make(make, request) for make in makers)
        schedules = [schedule for schedule, _ in rank_candidates(candidates, request.costs, cap, measure)]
    if not schedules:
        message = f'no schedule "{name}" was found within a memory cap of {cap:g} microbatches'
        raise ScheduleError(ScheduleCode.NOT_DEFINED, message, help="raise the memory cap")
    if request.tries:
        improved = (improve(start, request.costs, cap, request.tries, measure) for start in schedules[:_STARTS])
        schedules = [schedule for schedule, _ in rank_candidates(improved, request.costs, cap, measure)]
    return replace(schedules[0], name=name)


def _first_within_cap(makers: list[Maker], request: Request, cap: float) -> list[Schedule]:
    """The first maker's schedule that fits the cap; empty if none does."""
    for make in makers:
        schedule = _try_make(make, request)
        if schedule is not None and max(peaks(schedule, request.costs.kept)) <= cap + _TOLERANCE:
            return [schedule]
    return []


def _try_make(make: Maker, request: Request) -> Schedule | None:
    try:
        return make(request)
    except ScheduleError:
        return None


def _rank_makers(request: Request, cap: float, makers: list[Maker], measure: Measure) -> list[Maker]:
    """The makers, those with the best schedules for a shorter request first."""
    if len(makers) == 1:
        return makers
    candidates = [(make, schedule) for make in makers if (schedule := _try_make(make, request)) is not None]
    best_first = [
        best for best, _ in rank_candidates((schedule for _, schedule in candidates), request.costs, cap, measure)
    ]
    first = [make for best in best_first for make, schedule in candidates if schedule is best]
    return [*first, *(make for make in makers if make not in first)]


def zb_auto(request: Request) -> Schedule:
    """Zero bubble for any times under a memory cap. Source: arXiv 2401.10241, section 3.

    The default cap is p, as 1F1B needs. The best of ZB-H1, ZB-H2, and a list scheduler under several policies.
    """
    cap = float(request.ranks) if request.cap is None else request.cap
    makers: list[Maker] = [lambda r: zb_h1(r.ranks, r.microbatches), lambda r: zb_h2(r.ranks, r.microbatches)]
    makers += [partial(_list_schedule, cap=cap, policy=policy) for policy in _policies(request.is_large)]
    return best_schedule("zb-auto", request, cap, makers, Measure.SPAN)


def _policies(few: bool) -> Iterator[Policy]:
    gaps = (0.0, 1.0) if few else _GAPS
    patience = (0.5, 1.0) if few else (0.0, 0.5, 1.0)
    for first, gap, wait in product((First.OTHER, First.BACKWARD), gaps, patience):
        yield Policy(first, gap=gap, patience=wait)


def _list_schedule(request: Request, cap: float, policy: Policy, placement: tuple[int, ...] | None = None) -> Schedule:
    ranks = placement or loop_placement(request.ranks, request.chunks or 1)
    return list_schedule("list", ranks, request.microbatches, request.costs, cap, policy)


def list_scheduler_makers(placement: tuple[int, ...], cap: float, few: bool, splits: bool = True) -> list[Maker]:
    """Makers for a placement: the list scheduler under several policies."""
    makers: list[Maker] = []
    for policy, late in product(_policies(few), (True, False)):
        full = replace(policy, splits=splits, late_backwards=late)
        makers.append(partial(_list_schedule, cap=cap, policy=full, placement=placement))
    return makers


def zb_v(request: Request) -> Schedule:
    """Zero bubble on a V with the memory of 1F1B, for any times. Source: arXiv 2401.10241, section 6."""
    cap = float(request.ranks) if request.cap is None else request.cap
    makers: list[Maker] = []
    if request.microbatches >= 2 * request.ranks - 1:
        gaps = (0.6,) if request.is_large else _V_GAPS
        makers = [partial(_zbv_woven, cap=cap, gap=gap) for gap in (None, *gaps)]
    if not makers or cap < request.ranks or not request.is_large:
        makers += list_scheduler_makers(v_placement(request.ranks), cap, few=True)
    return best_schedule("zb-v", request, cap, makers, Measure.SPAN)


def _zbv_woven(request: Request, cap: float, gap: float | None) -> Schedule | None:
    by_hand = zbv_by_hand(request.ranks, request.microbatches)
    return by_hand if gap is None else weave(by_hand, request.costs, cap, gap)


def controlled_memory(name: str, offsets: Offsets, request: Request) -> Schedule:
    """V-Half or V-Min from their building blocks, compacted at both ends within the blocks' own peak memory."""
    ranks = request.ranks
    bound = max(peaks(repeated(name, offsets, ranks, min(request.microbatches, 4 * ranks))))
    cap = bound if request.cap is None else request.cap
    most = most_waiting(offsets, ranks, min(request.microbatches, 4 * ranks))
    shapes = list(product(sorted({most, min(most + 2, int(2 * cap))}), (0, 4, 6), (0.5, 1.0)))
    if request.is_large:
        shapes = [(most, 4, 0.5)]
    makers: list[Maker] = [lambda r: repeated(name, offsets, r.ranks, r.microbatches)] * (not request.is_large)
    for room, steady, gap in shapes:
        makers.append(partial(_squeezed, name=name, offsets=offsets, room=room, steady=steady, cap=cap, gap=gap))
    if request.cap is not None and request.cap != bound:
        makers += list_scheduler_makers(v_placement(ranks), cap, few=True)
    return best_schedule(name, request, cap, makers, Measure.SPAN)


def _squeezed(
    request: Request, name: str, offsets: Offsets, room: int, steady: int, cap: float, gap: float
) -> Schedule | None:
    blocks = squeezed(name, offsets, request.ranks, request.microbatches, room, steady * request.ranks)
    return weave(blocks, request.costs, cap, gap)
