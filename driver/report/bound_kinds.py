"""What runs for the functions of a program that have a kind, for `stretto explain`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ...runtime.implementations.binding import bindings
from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from ..text.console import count_text


@dataclass(frozen=True)
class BoundKind:
    """The functions of one kind for which the same runs on the program's target."""

    kind: str
    runs: str
    """The implementation's name; empty where the bodies run."""
    functions: int
    declined: tuple[str, ...] = ()
    """Implementations of the kind that took none of them."""

    def __str__(self) -> str:
        several = f" ({self.functions} functions)" if self.functions > 1 else ""
        left = f"; declined by {', '.join(self.declined)}" if self.declined else ""
        return f"{self.kind} by {self.runs or 'its body'}{several}{left}"

    def to_json(self) -> dict[str, Json]:
        return {
            "kind": self.kind, "implementation": self.runs or None, "functions": self.functions,
            "declined": list(self.declined),
        }  # fmt: skip


def fallbacks(program: Program) -> list[str]:
    """A remark for each kind of which functions run as their bodies on the program's target, and why."""
    target = program.manifest.target
    return [
        f"remark: on {target} {count_text(each.functions, 'function')} of kind {each.kind} "
        f"{'runs as its body' if each.functions == 1 else 'run as their bodies'}, op by op: "
        + (f"declined by {', '.join(each.declined)}" if each.declined else "no implementation was asked for")
        for each in bound_kinds(program)
        if not each.runs
    ]


def bound_kinds(program: Program) -> tuple[BoundKind, ...]:
    """What runs for each kind on the program's target, in the order of its functions."""
    counts: Counter[tuple[str, str, tuple[str, ...]]] = Counter()
    chosen = bindings(program, program.manifest.target)
    for name, function in program.functions.items():
        if function.kind is None:
            continue
        binding = chosen.get(name)
        runs = "" if binding is None or binding.implementation is None else binding.implementation.name
        counts[function.kind.name, runs, () if binding is None else binding.declined] += 1
    return tuple(BoundKind(kind, runs, count, declined) for (kind, runs, declined), count in counts.items())
