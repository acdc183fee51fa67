"""`stretto explain`: which communication runs beside what, by function, and what passes did and missed there."""

from __future__ import annotations

from collections.abc import Sequence

from ...runtime.program.records import Location
from ..text.console import count_text, heading, place_text, say, size_text, table
from .lanes import Beside, FunctionLanes
from .remarks import RemarkJson

PASSES = (
    "cut-nanobatches", "scatter-norms", "ring-matmuls", "split-all-reduce", "bucket-collectives", "hoist-collectives",
    "start-collectives", "cap-memory", "schedule-lanes",
)  # fmt: skip
"""Those that move, split or fuse communication, in order."""
_UNITS = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1, "FLOP"))
TRANSFORMS = PASSES[:5]
"""Those of them that split or fuse it."""


def show_lanes(functions: Sequence[FunctionLanes], remarks: Sequence[RemarkJson]) -> None:
    """Print what each function hides, and what the passes say."""
    if not functions:
        return
    heading("Communication beside work")
    rows: list[tuple[str, ...]] = []
    for function in functions:
        calls = f"{function.name}, {function.calls} x" if function.calls > 1 else function.name
        rows.append((f"in {calls}", "", "", "", ""))
        rows += [
            (
                f"  {_text(each)}", _where(each.start), _where(each.wait), _work(each),
                f"{each.hidden / each.duration:.0%}" if each.duration else "",
            )
            for each in function.collectives
        ]  # fmt: skip
    table(("communication", "starts behind", "waited for before", "beside it", "hidden"), rows, right=("hidden",))
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
            say(f"  {each.get('pass')}: {module}{each.get('message')}")


def _text(each: Beside) -> str:
    return f"{each.kind.replace('_coalesced', ' (bucket)')} over {', '.join(each.axes)}"


def _where(place: Location) -> str:
    return place.module or place_text(place.file, place.line) or "(the model itself)"


def _work(each: Beside) -> str:
    if not each.operations:
        return "nothing"
    flops, unit = next((each.flops / size, unit) for size, unit in _UNITS if each.flops >= size or size == 1)
    return f"{count_text(each.operations, 'op')}, {size_text(each.bytes)}, {flops:.3g} {unit}"
