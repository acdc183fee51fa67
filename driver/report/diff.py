"""`stretto diff A B`: compare one step of two modules, or of two programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...runtime.program.arguments import Json
from ..text.console import heading, place_text, say, size_text, table
from .summary import Communication, Link, Summary

_PLACES_SHOWN = 12
"""The most source lines that are printed."""


@dataclass(frozen=True)
class Difference:
    """Two summaries side by side."""

    a: Summary
    b: Summary

    @property
    def is_equal(self) -> bool:
        """Whether both are equal, source lines included."""
        return self.a.content == self.b.content and self.a.places == self.b.places

    @property
    def ops(self) -> list[tuple[str, int, int]]:
        """(name, in A, in B) of every op whose counts differ."""
        names = sorted({*self.a.ops, *self.b.ops})
        return [(name, self.a.ops[name], self.b.ops[name]) for name in names if self.a.ops[name] != self.b.ops[name]]

    @property
    def places(self) -> list[tuple[tuple[str, int, str], int, int]]:
        """(place, in A, in B) of every source line whose counts differ; the largest change first."""
        counts = [
            (place, self.a.places[place], self.b.places[place]) for place in sorted({*self.a.places, *self.b.places})
        ]
        return sorted((count for count in counts if count[1] != count[2]), key=lambda count: -abs(count[2] - count[1]))

    @property
    def communication(self) -> list[tuple[Link, Communication, Communication]]:
        """(kind and axes, in A, in B) of all communication that differs."""
        links = sorted({*self.a.communication, *self.b.communication})
        none = Communication()
        pairs = [(link, self.a.communication.get(link, none), self.b.communication.get(link, none)) for link in links]
        return [pair for pair in pairs if pair[1] != pair[2]]

    def to_json(self) -> Mapping[str, Json]:
        """One JSON object; every size is in bytes, of one rank in one step."""
        return {
            "equal": self.is_equal,
            "a": _summary_json(self.a),
            "b": _summary_json(self.b),
            "ops": [{"op": name, "a": a, "b": b} for name, a, b in self.ops],
            "communication": [
                {"kind": kind, "axes": list(axes), "a": _communication_json(a), "b": _communication_json(b)}
                for (kind, axes), a, b in self.communication
            ],
            "places": [
                {"file": file, "line": line, "module_path": path, "a": a, "b": b}
                for (file, line, path), a, b in self.places
            ],
        }


def show_difference(difference: Difference) -> None:
    """Print the totals, then the differences."""
    a, b = difference.a, difference.b
    rows = [
        ("operations", *_counts(a.ops.total(), b.ops.total())),
        ("collectives", *_counts(_total(a, "count"), _total(b, "count"))),
        ("sent by a rank", *_sizes(_total(a, "sent_bytes"), _total(b, "sent_bytes"))),
        ("peak of a rank", *_sizes(a.peak_bytes, b.peak_bytes)),
    ]
    say(f"A {_name(a)}")
    say(f"B {_name(b)}")
    table(("in one step", "A", "B", "change"), rows, right=("A", "B", "change"))
    _show_communication(difference)
    if difference.ops:
        heading("Operations")
        _table("op", [(name, *_counts(*both)) for name, *both in difference.ops])
    _show_places(difference)
    say()
    say(_verdict(difference))


def _name(side: Summary) -> str:
    return side.name + (f" ({side.stages} stages: sums over one rank of each)" if side.stages > 1 else "")


def _verdict(difference: Difference) -> str:
    if difference.is_equal:
        return "equal"
    if difference.ops or difference.communication or difference.a.peak_bytes != difference.b.peak_bytes:
        return "they differ"
    if difference.a.content == difference.b.content:
        return "they differ only in source lines"
    return "they differ: the same operations, in another order or with other operands or constants"


def _show_communication(difference: Difference) -> None:
    if not difference.communication:
        return
    heading("Communication")
    rows = []
    for (kind, axes), a, b in difference.communication:
        rows.append((f"{kind} over {', '.join(axes)}", *_counts(a.count, b.count)))
        rows.append(("  sent", *_sizes(a.sent_bytes, b.sent_bytes)))
    _table("collective", rows)


def _show_places(difference: Difference) -> None:
    if not difference.places:
        return
    heading("Lines of the model")
    rows = [(_place(*place), *_counts(a, b)) for place, a, b in difference.places[:_PLACES_SHOWN]]
    _table("place", rows)
    if len(difference.places) > _PLACES_SHOWN:
        say(f"  and {len(difference.places) - _PLACES_SHOWN} more; --json lists all")


def _table(what: str, rows: Sequence[tuple[str, ...]]) -> None:
    table((what, "A", "B", "change"), rows, right=("A", "B", "change"))


def _place(file: str, line: int, path: str) -> str:
    return ", ".join(part for part in (place_text(file, line), path) if part) or "(unknown place)"


def _counts(a: int, b: int) -> tuple[str, str, str]:
    return str(a), str(b), f"{b - a:+}" if a != b else ""


def _sizes(a: int | None, b: int | None) -> tuple[str, str, str]:
    if a is None or b is None:
        return (*("not safe" if size is None else size_text(size) for size in (a, b)), "")  # type: ignore[return-value]
    if a == b:
        return size_text(a), size_text(b), ""
    share = f" ({(b - a) / a:+.0%})" if a else ""
    return size_text(a), size_text(b), ("+" if b > a else "-") + size_text(abs(b - a)) + share


def _total(side: Summary, attribute: str) -> int:
    return sum(int(getattr(communication, attribute)) for communication in side.communication.values())


def _communication_json(communication: Communication) -> dict[str, Json]:
    return {
        "count": communication.count,
        "tensor_bytes": communication.tensor_bytes,
        "sent_bytes": communication.sent_bytes,
    }


def _summary_json(side: Summary) -> dict[str, Json]:
    return {
        "name": side.name, "operations": side.ops.total(), "collectives": _total(side, "count"),
        "tensor_bytes": _total(side, "tensor_bytes"), "sent_bytes": _total(side, "sent_bytes"),
        "peak_bytes": side.peak_bytes, "stages": side.stages,
    }  # fmt: skip
