"""A schedule as an SVG picture: a row for each rank, a box for each task, a legend and the figures."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import floor, log10

from ...schedules import Kind, Schedule, Task
from .schedule import MeasuredSchedule

_ROW, _GAP, _LEFT, _TOP, _FOOT = 26, 5, 58, 44, 56
"""Pixels: of a row, between rows, left and above the rows, below them."""
_LEAST_BOX, _WIDEST = 17.0, 1600.0
"""Pixels of the shortest box, as long as the rows are not wider than the second number."""
_FONT = 'font-family="Helvetica, Arial, sans-serif"'

_COLORS = {
    Kind.F: ("#3f6fb5", "#9dbbe3"),
    Kind.B: ("#1f8a70", "#8fd0bd"),
    Kind.W: ("#d99a2b", "#f1d29a"),
    Kind.BW: ("#1f8a70", "#8fd0bd"),
    Kind.S: ("#8e4a9e", "#8e4a9e"),
    Kind.T: ("#c9569a", "#c9569a"),
    Kind.E: ("#5d6d7e", "#5d6d7e"),
    Kind.G: ("#a5673f", "#a5673f"),
}
"""The color for a rank's first chunk, and for its other chunks."""
_WORDS = {
    Kind.F: "F forward",
    Kind.B: "B gradient of the input",
    Kind.W: "W of the weights",
    Kind.BW: "BW full backward",
    Kind.S: "S output, shared",
    Kind.T: "T rest of it, shared",
    Kind.E: "E embeddings, shared",
    Kind.G: "G their gradient, shared",
}


def svg(measured: MeasuredSchedule) -> str:
    """The picture as SVG text; equal schedules give equal text."""
    return "\n".join([*_lines(measured), ""])


def _lines(measured: MeasuredSchedule) -> Iterator[str]:
    schedule, figures = measured.schedule, measured.figures
    scale = _scale(measured)
    width = _LEFT + figures.makespan * scale + 16
    height = _TOP + schedule.ranks * (_ROW + _GAP) + _FOOT
    full = max(width, 620)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full:.0f}" height="{height}" '
        f'viewBox="0 0 {full:.0f} {height}" {_FONT} font-size="11">'
    )
    yield f'<rect width="{full:.0f}" height="{height}" fill="#ffffff"/>'
    many = f"p = {schedule.ranks}, m = {schedule.microbatches}, v = {schedule.chunks}"
    if schedule.barriers:
        many += f", {schedule.barriers} barrier{'s' if schedule.barriers > 1 else ''}"
    yield f'<text x="12" y="24" font-size="15" font-weight="bold" fill="#222222">{escape(schedule.name)}</text>'
    figures_text = (
        f"{many}; bubble {figures.bubble_by_makespan:.1%} by makespan, {figures.bubble_by_span:.1%} by span; "
        f"peak {figures.peak:g} activations"
    )
    yield f'<text x="{24 + 9 * len(schedule.name)}" y="24" fill="#555555">{figures_text}</text>'
    for rank in range(schedule.ranks):
        yield from _rank_boxes(measured, rank, scale)
    yield from _axis(figures.makespan, scale, _TOP + schedule.ranks * (_ROW + _GAP))
    yield from _legend(schedule, height - 14)
    yield "</svg>"


def _scale(measured: MeasuredSchedule) -> float:
    """Pixels per unit of time."""
    rows = zip(measured.schedule.order, measured.timeline.starts, measured.timeline.ends, strict=True)
    boxes = (box for row in rows for box in zip(*row, strict=True))
    lengths = (end - start for task, start, end in boxes if not task.kind.is_shared)
    shortest = min((length for length in lengths if length > 0), default=1.0)
    makespan = measured.figures.makespan or 1.0
    return min(_LEAST_BOX / shortest, _WIDEST / makespan)


def _rank_boxes(measured: MeasuredSchedule, rank: int, scale: float) -> Iterator[str]:
    schedule, timeline = measured.schedule, measured.timeline
    top = _TOP + rank * (_ROW + _GAP)
    width = measured.figures.makespan * scale
    yield f'<text x="{_LEFT - 8}" y="{top + 17}" text-anchor="end" fill="#333333">rank {rank}</text>'
    yield f'<rect x="{_LEFT}" y="{top}" width="{width:.2f}" height="{_ROW}" fill="#eeeeee"/>'
    before: Task | None = None
    for task, start, end in zip(schedule.order[rank], timeline.starts[rank], timeline.ends[rank], strict=True):
        first, height = top, _ROW
        if task in schedule.overlapped or before in schedule.overlapped:
            height = _ROW // 2
            first = top if task in schedule.overlapped else top + height
        yield from _box(schedule, task, _LEFT + start * scale, first, (end - start) * scale, height)
        before = task


def _box(schedule: Schedule, task: Task, left: float, top: int, width: float, height: int) -> Iterator[str]:
    later = task.stage >= schedule.ranks
    color = _COLORS[task.kind][later]
    title = escape(str(task))
    yield (
        f'<rect x="{left:.2f}" y="{top}" width="{width:.2f}" height="{height}" fill="{color}" stroke="#ffffff" '
        f'stroke-width="0.8"><title>{title}</title></rect>'
    )
    text = str(task.microbatch)
    if width >= 6.5 * len(text) + 2:
        ink, size = ("#1d1d1d" if later or task.kind == Kind.W else "#ffffff"), 11 if height == _ROW else 9
        middle = left + width / 2
        base = top + height / 2 + size * 0.36
        place = f'x="{middle:.2f}" y="{base:.1f}" text-anchor="middle"'
        yield f'<text {place} font-size="{size}" fill="{ink}">{text}</text>'


def _axis(makespan: float, scale: float, top: int) -> Iterator[str]:
    yield f'<line x1="{_LEFT}" y1="{top}" x2="{_LEFT + makespan * scale:.2f}" y2="{top}" stroke="#999999"/>'
    step = _step(makespan)
    for part in range(int(makespan / step + 1e-9) + 1):
        time = step * part
        x = _LEFT + time * scale
        yield f'<line x1="{x:.2f}" y1="{top}" x2="{x:.2f}" y2="{top + 4}" stroke="#999999"/>'
        yield f'<text x="{x:.2f}" y="{top + 16}" font-size="10" text-anchor="middle" fill="#777777">{time:g}</text>'


def _step(makespan: float) -> float:
    """A round step of the time axis, of which 4 to 10 fit in the picture."""
    power = 10.0 ** floor(log10(makespan / 4)) if makespan > 0 else 1.0
    return next(step * power for step in (5, 2, 1) if step * power * 4 <= makespan or step == 1)


def _legend(schedule: Schedule, base: int) -> Iterator[str]:
    left = 12
    for kind in Kind:
        if not any(task.kind == kind for row in schedule.order for task in row):
            continue
        shades = _COLORS[kind][: 1 + (schedule.chunks > 1 and not kind.is_shared)]
        for color in shades:
            yield f'<rect x="{left}" y="{base - 10}" width="12" height="12" fill="{color}"/>'
            left += 14
        yield f'<text x="{left + 3}" y="{base}" fill="#333333">{_WORDS[kind]}</text>'
        left += 16 + 6 * len(_WORDS[kind])
    if schedule.chunks > 1:
        yield f'<text x="{left + 3}" y="{base}" fill="#333333">light: later chunks</text>'
