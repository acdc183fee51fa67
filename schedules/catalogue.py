"""The named schedules: generator, limits, bubble and memory in closed form, source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from .error import ScheduleCode, ScheduleError
from .figures import Measure, peaks
from .generators.automatic import automatic
from .generators.building_blocks import v_half_offsets, v_min_offsets
from .generators.heuristics import best_schedule, controlled_memory, list_scheduler_makers, zb_auto, zb_v
from .generators.local_search import improve
from .generators.looped import breadth_first, interleaved
from .generators.one_chunk import fill_drain, forward_only, one_f_one_b, zb_h1, zb_h2
from .generators.v_shaped import dualpipe_v
from .prove import prove
from .request import Request, not_defined
from .schedule import Schedule, loop_placement


@dataclass(frozen=True)
class Entry:
    """A named schedule. In formulas: p ranks, m microbatches, v chunks; f, b, w are times per microbatch and rank."""

    name: str
    line: str
    make: Callable[[Request], Schedule]
    chunks: tuple[int, int | None]
    """The fewest and the most virtual stages per rank; None: no upper limit."""
    idle: str
    """The idle time of a rank, as published."""
    memory: str
    """Peak activations, in units of one microbatch's activations on a rank."""
    source: str


def _interleaved(request: Request) -> Schedule:
    chunks = request.chunks or 2
    by_hand = interleaved(request.ranks, request.microbatches, chunks)
    try:
        if request.microbatches % request.ranks:
            prove(by_hand)
    except ScheduleError:
        cap = max(peaks(by_hand))
        makers = list_scheduler_makers(loop_placement(request.ranks, chunks), cap, few=True, splits=False)
        return best_schedule("interleaved", replace(request, chunks=chunks), cap, makers, Measure.MAKESPAN)
    return by_hand


def _dualpipe_v(request: Request) -> Schedule:
    if request.microbatches < 2 * request.ranks:
        needs = f"at least {2 * request.ranks} microbatches for {request.ranks} stages"
        raise not_defined("dualpipe-v", needs, str(request.microbatches), "take more microbatches, or zb-v")
    return dualpipe_v(request.ranks, request.microbatches)


_ENTRIES = (
    Entry("gpipe", "all forwards, then all backwards", lambda r: fill_drain(r.ranks, r.microbatches), (1, 1),
          "(p-1)(f+b+w)", "m", "GPipe, arXiv 1811.06965"),
    Entry("1f1b", "one forward, one backward", lambda r: one_f_one_b(r.ranks, r.microbatches), (1, 1),
          "(p-1)(f+b+w)", "p", "PipeDream-flush, arXiv 2006.09503"),
    Entry("interleaved", "1F1B with several stages on a rank", _interleaved, (1, None),
          "(p-1)(f+b+w)/v", "p+(p-1)/v", "Megatron-LM, arXiv 2104.04473"),
    Entry("breadth-first", "every chunk for all microbatches at once",
          lambda r: breadth_first(r.ranks, r.microbatches, r.chunks or 2), (1, None),
          "(p-1)(f+b+w)/v", "m", "arXiv 2211.05953"),
    Entry("zb-h1", "1F1B with W put off, in the memory of 1F1B", lambda r: zb_h1(r.ranks, r.microbatches), (1, 1),
          "(p-1)(f+b-w)", "p", "Zero bubble, arXiv 2401.10241"),
    Entry("zb-h2", "no bubble where f = b = w, in twice the memory", lambda r: zb_h2(r.ranks, r.microbatches), (1, 1),
          "(p-1)(f+b-2w), by span", "2p-1", "Zero bubble, arXiv 2401.10241"),
    Entry("zb-auto", "zero bubble for given times under a memory cap", zb_auto, (1, 1),
          "by search", "the cap, p by default", "Zero bubble, arXiv 2401.10241"),
    Entry("zb-v", "zero bubble on a V in the memory of 1F1B", zb_v, (2, 2),
          "0 where f = b = w, by span", "p", "Zero bubble, arXiv 2401.10241"),
    Entry("v-half", "on a V in half the memory of 1F1B",
          lambda r: controlled_memory("v-half", v_half_offsets, r), (2, 2),
          "by search", "p/2 + constant", "Controllable memory, arXiv 2405.15362"),
    Entry("v-min", "on a V in a third of the memory of 1F1B",
          lambda r: controlled_memory("v-min", v_min_offsets, r), (2, 2),
          "by search", "p/3 + constant", "Controllable memory, arXiv 2405.15362"),
    Entry("dualpipe-v", "forwards overlapped with backwards, on a V", _dualpipe_v, (2, 2),
          "(p-1)(fb+b-2w)/2", "p+1/2", "DeepSeek-V3, arXiv 2412.19437; DualPipe"),
    Entry("forward-only", "no backward, for inference",
          lambda r: forward_only(r.ranks, r.microbatches, r.chunks or 1), (1, None),
          "(p-1)f/v", "1/v", "GPipe, arXiv 1811.06965"),
)  # fmt: skip

_AUTO = Entry(
    "auto", "the best of all these and of a search, under a memory cap",
    lambda request: automatic(request, tuple(_fixed(entry) for entry in _ENTRIES if entry.name != "forward-only")),
    (1, None), "by search", "the cap", "this compiler",
)  # fmt: skip

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in (*_ENTRIES, _AUTO)}
"""By name, in the order of listings."""


def names() -> tuple[str, ...]:
    """The names of all schedules."""
    return tuple(CATALOGUE)


def generate(name: str, request: Request) -> Schedule:
    """Make a named schedule. `prove` accepts it, within `request.cap` if the schedule honours one.

    Raises ScheduleError for an unknown name (E0440), and for numbers that the schedule does not support (E0441).
    """
    if name not in CATALOGUE:
        near = get_close_matches(name, CATALOGUE, n=1)
        raise ScheduleError(
            ScheduleCode.UNKNOWN_SCHEDULE,
            f'unknown schedule "{name}"',
            expected=f"expected {', '.join(CATALOGUE)}",
            help=f'did you mean "{near[0]}"?' if near else "",
        )
    entry = CATALOGUE[name]
    _check_chunks(entry, request.chunks)
    return _improved(entry, request)


def _improved(entry: Entry, request: Request) -> Schedule:
    """The entry's schedule, improved by local search if `request.tries` asks for it."""
    schedule = entry.make(request)
    if request.tries and "search" not in entry.idle and schedule.has_backward:
        cap = request.cap if request.cap is not None else max(peaks(schedule, request.costs.kept))
        return improve(schedule, request.costs, cap, request.tries, request.measure or Measure.SPAN)
    return schedule


def _fixed(entry: Entry) -> Callable[[Request], Schedule]:
    def make(request: Request) -> Schedule:
        _check_chunks(entry, request.chunks)
        return entry.make(replace(request, tries=0))

    return make


def _check_chunks(entry: Entry, chunks: int | None) -> None:
    least, most = entry.chunks
    if chunks is not None and (chunks < least or (most is not None and chunks > most)):
        needs = f"{least} chunk{'' if least == 1 else 's'} on each rank"
        others = "interleaved or breadth-first" if chunks > 2 else "another schedule"
        raise not_defined(entry.name, needs, str(chunks), f"leave the chunks out, or take {others}")
