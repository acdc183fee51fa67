"""`auto`: the best of all named schedules and of a list scheduler, then improved by local search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ..figures import Measure
from ..request import Request
from ..schedule import Schedule, loop_placement, v_placement
from .heuristics import Maker, best_schedule, list_scheduler_makers

_TRIES = 200
"""Moves of the local search by default, for schedules that are not large."""


def automatic(request: Request, named: tuple[Callable[[Request], Schedule], ...]) -> Schedule:
    """The best schedule within the cap, by `request.measure` (default: makespan); never worse than any of `named`.

    Without `request.chunks`, 1 and 2 virtual stages per rank are tried. Raises E0441 if none fits the cap.
    """
    counts = (request.chunks,) if request.chunks is not None or request.is_large else (None, 1, 2)
    makers: list[Maker] = [_with_chunks(make, count) for count in counts for make in named]
    if not request.is_large:
        makers += list(_list_schedules(request))
    tries = request.tries or (0 if request.is_large else _TRIES)
    return best_schedule("auto", replace(request, tries=tries), request.limit, makers, Measure.MAKESPAN)


def _with_chunks(make: Callable[[Request], Schedule], chunks: int | None) -> Maker:
    return lambda request: make(replace(request, chunks=chunks))


def _list_schedules(request: Request) -> Iterator[Maker]:
    """The list scheduler on all placements; without a cap, with memory for 2 p microbatches, enough for no bubble."""
    cap = min(request.limit, 2.0 * request.ranks)
    if cap < 1:
        return
    for chunks in (1, 2) if request.chunks is None else (request.chunks,):
        yield from list_scheduler_makers(loop_placement(request.ranks, chunks), cap, few=True)
        if chunks == 2:
            yield from list_scheduler_makers(v_placement(request.ranks), cap, few=True)
