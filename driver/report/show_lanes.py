"""`stretto explain`: which communication runs beside what, by function, and what passes did and missed there."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from ...runtime.program.records import Location
from ..text.console import heading, place_text, say, size_text, table
from .lanes import Beside, FunctionLanes
from .remarks import RemarkJson

TRANSFORMS = ("cut-nanobatches", "scatter-norms", "ring-matmuls", "split-all-reduce", "bucket-collectives")
"""The passes that split or fuse communication, in order."""
PASSES = (*TRANSFORMS, "hoist-collectives", "start-collectives", "cap-memory", "schedule-lanes")
"""These, and those that move it."""
_WIDEST, _NAME = 98, 17
"""The most characters of a line, and of a module's name."""
_UNITS = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1, "FLOP"))


def show_lanes(functions: Sequence[FunctionLanes], remarks: Sequence[RemarkJson]) -> None:
    """Print what each function hides, and what the passes say."""
    if not functions:
        return
    heading("Communication beside work")
    rows: list[tuple[str, ...]] = []
    for function in functions:
        rows.append((f"in {function.name}", f"{function.calls} x" if function.calls > 1 else "", "", "", ""))
        rows += [
            (
                f"  {_text(each)}", _where(each.start), _where(each.wait), _work(each),
                f"{each.hidden / each.duration:.0%}" if each.duration else "",
            )
            for each in function.collectives
        ]  # fmt: skip
    table(
        ("communication", "starts behind", "waited for before", "computed beside it", "hidden"), rows, right=("hidden",)
    )
    whole, hidden = (
        sum(function.calls * getattr(each, key) for function in functions for each in function.collectives)
        for key in ("duration", "hidden")
    )
    if whole:
        say(f"  {hidden / whole:.0%} of the communication of a step is hidden, by counts of bytes and FLOPs;")
        say("  (a guess from ratios: stretto simulate has times)")
    _changes(remarks)


def _changes(remarks: Sequence[RemarkJson]) -> None:
    of_passes = [each for each in remarks if each.get("pass") in PASSES]
    changed = [each for each in of_passes if each.get("kind") == "applied" and each.get("pass") in TRANSFORMS]
    changed += [each for each in of_passes if each.get("kind") == "applied" and each.get("pass") == "schedule-lanes"]
    missed = [each for each in of_passes if each.get("kind") in ("missed", "warning")]
    for title, found in (("What was split, fused and ordered", changed), ("Near misses", missed)):
        if found:
            heading(title)
        for each in found:
            module = f"{each.get('module')}: " if each.get("module") else ""
            text = f"{each.get('pass')}: {module}{each.get('message')}"
            say(fill(text, _WIDEST, initial_indent="  ", subsequent_indent="    ", break_long_words=False))


def _text(each: Beside) -> str:
    return f"{each.kind.replace('_coalesced', 's')} {', '.join(each.axes)}"


def _where(place: Location) -> str:
    """The last part of a module's name, else the line."""
    name = place.module.rpartition(".")[2]
    if not name or name in ("*", "") or name.isdigit():
        name = place.module or place_text(place.file, place.line) or "(the model)"
    return name if len(name) <= _NAME else f"{name[: _NAME - 2]}.."


def _work(each: Beside) -> str:
    if not each.operations:
        return "nothing"
    flops, unit = next((each.flops / size, unit) for size, unit in _UNITS if each.flops >= size or size == 1)
    return f"{size_text(each.bytes)}, {flops:.3g} {unit}"
