"""`stretto diff A B`: what differs between two modules, or two programs, in what they do in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...runtime.program.arguments import Json
from ..text.console import heading, place_text, say, size_text, table
from .summary import Communication, Link, Summary

_PLACES = 12
"""So many lines of the model are told."""


@dataclass(frozen=True)
class Difference:
    """Two summaries side by side."""

    a: Summary
    b: Summary

    @property
    def is_equal(self) -> bool:
        """Whether both are the same, source lines included."""
        return self.a.content == self.b.content and self.a.places == self.b.places

    @property
    def ops(self) -> list[tuple[str, int, int]]:
        """(name, in A, in B) of every op whose counts differ."""
        names = sorted({*self.a.ops, *self.b.ops})
        return [(name, self.a.ops[name], self.b.ops[name]) for name in names if self.a.ops[name] != self.b.ops[name]]

    @property
    def places(self) -> list[tuple[tuple[str, int, str], int, int]]:
        """(place, in A, in B) of every line of the model whose counts differ; the largest change first."""
        found = [(at, self.a.places[at], self.b.places[at]) for at in sorted({*self.a.places, *self.b.places})]
        return sorted((row for row in found if row[1] != row[2]), key=lambda row: -abs(row[2] - row[1]))

    @property
    def communication(self) -> list[tuple[Link, Communication, Communication]]:
        """(kind and axes, in A, in B) of all communication that differs."""
        links = sorted({*self.a.communication, *self.b.communication})
        none = Communication()
        rows = [(link, self.a.communication.get(link, none), self.b.communication.get(link, none)) for link in links]
        return [row for row in rows if row[1] != row[2]]

    def to_json(self) -> Mapping[str, Json]:
        """One JSON object; every size is in bytes, of one rank in one step."""
        return {
            "equal": self.is_equal,
            "a": _side(self.a),
            "b": _side(self.b),
            "ops": [{"op": name, "a": a, "b": b} for name, a, b in self.ops],
            "communication": [
                {"kind": kind, "axes": list(axes), "a": _link(a), "b": _link(b)}
                for (kind, axes), a, b in self.communication
            ],
            "places": [
                {"file": file, "line": line, "module_path": path, "a": a, "b": b}
                for (file, line, path), a, b in self.places
            ],
        }


def show_difference(found: Difference) -> None:
    """Print totals, then what differs."""
    a, b = found.a, found.b
    rows = [
        ("operations", *_counts(a.ops.total(), b.ops.total())),
        ("collectives", *_counts(_sum(a, "count"), _sum(b, "count"))),
        ("sent by a rank", *_sizes(_sum(a, "sent_bytes"), _sum(b, "sent_bytes"))),
        ("peak of a rank", *_sizes(a.peak_bytes, b.peak_bytes)),
    ]
    say(f"A {_name(a)}")
    say(f"B {_name(b)}")
    table(("in one step", "A", "B", "change"), rows, right=("A", "B", "change"))
    _show_communication(found)
    if found.ops:
        heading("Operations")
        _table("op", [(name, *_counts(*both)) for name, *both in found.ops])
    _show_places(found)
    say()
    say(_verdict(found))


def _name(side: Summary) -> str:
    return side.name + (f" ({side.stages} stages: a rank of each, counted together)" if side.stages > 1 else "")


def _verdict(found: Difference) -> str:
    if found.is_equal:
        return "equal"
    if found.ops or found.communication or found.a.peak_bytes != found.b.peak_bytes:
        return "they differ"
    if found.a.content == found.b.content:
        return "they differ in source lines alone"
    return "they differ: the same operations, in another order or with other operands or constants"


def _show_communication(found: Difference) -> None:
    if not found.communication:
        return
    heading("Communication")
    rows = []
    for (kind, axes), a, b in found.communication:
        rows.append((f"{kind} over {', '.join(axes)}", *_counts(a.count, b.count)))
        rows.append(("  sent", *_sizes(a.sent_bytes, b.sent_bytes)))
    _table("collective", rows)


def _show_places(found: Difference) -> None:
    if not found.places:
        return
    heading("Lines of the model")
    rows = [(_place(*at), *_counts(a, b)) for at, a, b in found.places[:_PLACES]]
    _table("place", rows)
    if len(found.places) > _PLACES:
        say(f"  and {len(found.places) - _PLACES} more (--json has all)")


def _table(what: str, rows: Sequence[tuple[str, ...]]) -> None:
    table((what, "A", "B", "change"), rows, right=("A", "B", "change"))


def _place(file: str, line: int, path: str) -> str:
    return ", ".join(part for part in (place_text(file, line), path) if part) or "(unknown place)"


def _counts(a: int, b: int) -> tuple[str, str, str]:
    return str(a), str(b), f"{b - a:+}" if a != b else ""


def _sizes(a: int | None, b: int | None) -> tuple[str, str, str]:
    if a is None or b is None:
        return (*("not safe" if each is None else size_text(each) for each in (a, b)), "")  # type: ignore[return-value]
    if a == b:
        return size_text(a), size_text(b), ""
    share = f" ({(b - a) / a:+.0%})" if a else ""
    return size_text(a), size_text(b), ("+" if b > a else "-") + size_text(abs(b - a)) + share


def _sum(side: Summary, what: str) -> int:
    return sum(int(getattr(each, what)) for each in side.communication.values())


def _link(each: Communication) -> dict[str, Json]:
    return {"count": each.count, "tensor_bytes": each.tensor_bytes, "sent_bytes": each.sent_bytes}


def _side(side: Summary) -> dict[str, Json]:
    return {
        "name": side.name, "operations": side.ops.total(), "collectives": _sum(side, "count"),
        "tensor_bytes": _sum(side, "tensor_bytes"), "sent_bytes": _sum(side, "sent_bytes"),
        "peak_bytes": side.peak_bytes, "stages": side.stages,
    }  # fmt: skip
