"""Estimate the memory of a run from the module's types, in bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from math import prod

from ..module import Level
from .code import Body, Code, Step, used
from .errors import MEMORY, InterpreterError
from .precision import Floats
from .ranks import grid_of

_ROUNDED_UP = 1.1
"""The cap that the help proposes, as a factor of the need: its text has one decimal."""
_SCORES = 3
"""Temporaries of the size of the attention scores that an attention needs at once."""


@dataclass(frozen=True)
class Estimate:
    """Peak bytes; views count as full tensors."""

    rank_bytes: int
    """Of one rank (of the largest stage), with its inputs."""
    ranks: int
    global_bytes: int
    """Of the global inputs, which are sharded to the ranks."""
    largest_input: str

    @property
    def total_bytes(self) -> int:
        """The sum over all ranks, each at its own peak, as they share a process."""
        return self.rank_bytes * self.ranks + self.global_bytes


def estimate(code: Code, floats: Floats) -> Estimate:
    """The estimated bytes of a run."""
    sizes = {}
    for i, port in enumerate(code.arguments):
        name = str(port.record.get("name") or f"argument {i}")
        sizes[name] = prod(code.global_shape(port.type)) * floats.of(port.type.dtype).itemsize
    largest = max(sizes, key=lambda name: sizes[name], default="")
    whole = sum(sizes.values()) if code.level is Level.COMM else 0
    meter = _Meter(code, floats)
    return Estimate(max(meter.peak(e.name) for e in code.entries), grid_of(code).ranks, whole, largest)


def check(code: Code, floats: Floats, max_bytes: int | None) -> None:
    """E0655 if the estimate exceeds `max_bytes` (default: half of the machine's memory)."""
    needed = estimate(code, floats)
    cap = machine_bytes() // 2 if max_bytes is None else max_bytes
    if needed.total_bytes <= cap:
        return
    enough = size_text(needed.total_bytes * _ROUNDED_UP).replace(" ", "")
    raise InterpreterError(
        MEMORY,
        f"running this module takes about {size_text(needed.total_bytes)} on {needed.ranks} rank(s) "
        f"({size_text(needed.rank_bytes)} each), more than the cap of {size_text(cap)}",
        notes=((f'the largest argument is "{needed.largest_input}"', None),),
        help="compile with a smaller --batch or --seq (or fewer layers) and --dump-ir, or raise the cap: "
        f"--memory-cap {enough} (in Python max_bytes)",
    )


def size_text(size: float) -> str:
    """Bytes with a unit, as --memory-cap reads them."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.1f} {units[0]}"


def machine_bytes() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Meter:
    """Peak bytes of functions by liveness, calls included."""

    def __init__(self, code: Code, floats: Floats) -> None:
        self._code = code
        self._floats = floats
        self.peak = cache(self._peak)

    def _peak(self, name: str) -> int:
        body = self._code.bodies[name]
        live = {slot: self._size(body, slot) for slot in body.arguments}
        total = sum(live.values())
        peak = total
        for step in body.steps:
            callee_bytes = 0
            if step.callee:
                argument_bytes = sum(self._size(body, slot) for slot in set(used(step)))
                callee_bytes = max(0, self.peak(step.callee) - argument_bytes)
            peak = max(peak, total + callee_bytes)
            for slot in step.out:
                live[slot] = self._size(body, slot)
                total += live[slot]
            peak = max(peak, total + self._workspace(body, step))
            for slot in step.free:
                total -= live.pop(slot, 0)
        return peak

    def _size(self, body: Body, slot: int) -> int:
        type_ = body.types[slot]
        return 0 if type_ is None else prod(type_.shape) * self._floats.of(type_.dtype).itemsize

    def _workspace(self, body: Body, step: Step) -> int:
        """Bytes that an operation needs beside its operands and results."""
        if not step.name.startswith("nn.attention"):
            return 0
        types = [body.types[slot] for slot in used(step)]
        query, key = types[:2] if step.name == "nn.attention" else types[1:3]
        if query is None or key is None:
            return 0
        scores = prod(query.shape[:3]) * key.shape[2]
        return _SCORES * scores * self._floats.of(query.dtype).itemsize
