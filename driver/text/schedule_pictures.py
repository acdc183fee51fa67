"""The pictures of docs/pipelines.md: every named schedule on one small pipeline, and 1f1b with a shared vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...diagnostics import StrettoError
from ...schedules import CATALOGUE, Costs, Request
from .schedule import measure_named
from .schedule_svg import svg
from .text_files import write_text

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
_RANKS, _MICROBATCHES = 4, 8
_COMMUNICATION = {"zb-auto": Costs(1.0, 1.1, 0.8, 0.1), "auto": Costs(1.0, 1.1, 0.8, 0.1)}
"""Schedules that are drawn with other task times than 1, 1, 1, 0."""


def pictures() -> Mapping[str, str]:
    """The SVG text of each picture, by file name."""
    texts = {}
    for name in CATALOGUE:
        costs = _COMMUNICATION.get(name, Costs())
        cap = float(_RANKS) if name == "auto" else None
        texts[f"{name}.svg"] = svg(measure_named(name, Request(_RANKS, _MICROBATCHES, costs=costs, cap=cap)))
    shared = Costs(c=0.4, s=0.5, t=0.5, e=0.2, g=0.2)
    for barriers in (1, 2):
        picture = svg(measure_named("1f1b", Request(_RANKS, _MICROBATCHES, costs=shared), barriers))
        texts[f"vocabulary-{barriers}.svg"] = picture
    return texts


def write_pictures() -> int:
    """Write all pictures into a checkout's docs; returns their number. Raises E0507 outside of a checkout."""
    if not FOLDER.is_dir():
        raise StrettoError("E0507", f"'{FOLDER}' cannot be read: the pictures are written in a checkout")
    texts = pictures()
    for name, text in texts.items():
        write_text(FOLDER / name, text)
    return len(texts)
