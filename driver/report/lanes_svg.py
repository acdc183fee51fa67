"""The lanes of functions as an SVG picture: a panel for a function, a row for a lane, a box for an operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .lanes import FunctionLanes, Work

_ROW, _GAP, _HEAD, _LEFT, _FOOT = 26, 5, 34, 92, 34
"""Pixels: of a row, between rows, above a panel's rows, left of them, below the last panel."""
_WIDTH = 900
"""Pixels of the longest panel's rows."""
_FONT = 'font-family="Helvetica, Arial, sans-serif"'
_PRODUCTS, _MEMORY, _HIDDEN, _IDLE = "#3f6fb5", "#9dbbe3", "#1f8a70", "#eeeeee"
_EXPOSED = "#c9569a"
_LEGEND = (
    (_PRODUCTS, "products and attention"),
    (_MEMORY, "other operations"),
    (_HIDDEN, "communication beside work"),
    (_EXPOSED, "communication that work waits for"),
)


def svg(panels: Sequence[tuple[str, FunctionLanes]]) -> str:
    """The panels below each other on one scale, as SVG text; equal panels give equal text."""
    return "\n".join([*_lines(panels), ""])


def _lines(panels: Sequence[tuple[str, FunctionLanes]]) -> Iterator[str]:
    scale = _WIDTH / max((lanes.total for _, lanes in panels), default=1.0)
    tops, top = [], 8
    for _, lanes in panels:
        tops.append(top)
        top += _HEAD + len(_rows(lanes)) * (_ROW + _GAP)
    width, height = _LEFT + _WIDTH + 16, top + _FOOT
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'{_FONT} font-size="11">'
    )
    yield f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    for (title, lanes), place in zip(panels, tops, strict=True):
        yield from _panel(title, lanes, place, scale)
    left = 12
    for color, text in _LEGEND:
        yield f'<rect x="{left}" y="{height - 22}" width="12" height="12" fill="{color}"/>'
        yield f'<text x="{left + 17}" y="{height - 12}" fill="#333333">{text}</text>'
        left += 34 + 6 * len(text)
    yield "</svg>"


def _rows(lanes: FunctionLanes) -> list[str]:
    """The lanes that have work, `compute` first."""
    found = dict.fromkeys(["compute", *(work.lane for work in lanes.work if work.end > work.begin)])
    return list(found)


def _panel(title: str, lanes: FunctionLanes, top: int, scale: float) -> Iterator[str]:
    waits = _waits(lanes)
    busy = sum(work.end - work.begin for work in lanes.work if work.lane == "compute" and work.op != "comm.wait")
    share = 1 - busy / lanes.total if lanes.total else 0.0
    yield f'<text x="12" y="{top + 20}" font-size="13" font-weight="bold" fill="#222222">{escape(title)}</text>'
    yield (
        f'<text x="{_LEFT + _WIDTH}" y="{top + 20}" text-anchor="end" fill="#555555">'
        f"{share:.0%} of its time waits for communication</text>"
    )
    for number, lane in enumerate(_rows(lanes)):
        place = top + _HEAD + number * (_ROW + _GAP)
        name = lane if lane == "compute" else f"{lane} (links)"
        yield f'<text x="{_LEFT - 8}" y="{place + 17}" text-anchor="end" fill="#333333">{escape(name)}</text>'
        yield (f'<rect x="{_LEFT}" y="{place}" width="{lanes.total * scale:.2f}" height="{_ROW}" fill="{_IDLE}"/>')
        for work in lanes.work:
            if work.lane == lane and work.end > work.begin and work.op != "comm.wait":
                yield from _box(work, place, scale, waits)


def _box(work: Work, top: int, scale: float, waits: Sequence[tuple[float, float]]) -> Iterator[str]:
    if work.lane == "compute":
        yield _rect(work, work.begin, work.end, _PRODUCTS if work.flops else _MEMORY, top, scale)
        return
    at = work.begin
    for begin, end in waits:  # in order
        begin, end = max(begin, at), min(end, work.end)
        if begin < end:
            if at < begin:
                yield _rect(work, at, begin, _HIDDEN, top, scale)
            yield _rect(work, begin, end, _EXPOSED, top, scale)
            at = end
    if at < work.end:
        yield _rect(work, at, work.end, _HIDDEN, top, scale)


def _rect(work: Work, begin: float, end: float, color: str, top: int, scale: float) -> str:
    name = work.op.removeprefix("comm.").removesuffix("_start")
    told = f"{name} {work.place.module}".strip() + f": {work.bytes:,} bytes, {work.flops:,.0f} FLOPs"
    return (
        f'<rect x="{_LEFT + begin * scale:.2f}" y="{top}" width="{(end - begin) * scale:.2f}" height="{_ROW}" '
        f'fill="{color}" stroke="#ffffff" stroke-width="0.6"><title>{escape(told)}</title></rect>'
    )


def _waits(lanes: FunctionLanes) -> list[tuple[float, float]]:
    """When the lane that computes waits."""
    return [(work.begin, work.end) for work in lanes.work if work.op == "comm.wait" and work.end > work.begin]
