"""Plant faults in the generator; print, for each, the seeds of random regions that it makes wrong, as JSON."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interpreted import wrong_with
from stretto.backends.triton import generate, indexing, joins, pointwise, reductions, scalars, views


def swap(owner: Any, name: str, replacement: Any) -> Callable[[], None]:
    """Plant a fault; the result takes it out again."""
    before = owner[name] if isinstance(owner, dict) else getattr(owner, name)

    def put(value: Any) -> None:
        if isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)

    put(replacement)
    return lambda: put(before)


FAULTS: dict[str, Callable[[], Callable[[], None]]] = {
    "sub the other way round": lambda: swap(pointwise.TABLE, "sub", lambda x, y, alpha="1": f"{y} - {x}"),
    "alpha is dropped": lambda: swap(pointwise.TABLE, "add", lambda x, y, alpha="1": f"{x} + {y}"),
    "silu without its slope": lambda: swap(pointwise.TABLE, "silu_backward", lambda g, x: f"{g} * {x}"),
    "masked columns count": lambda: swap(reductions.Reduction, "identity", property(lambda self: "1.0")),
    "mean is a sum": lambda: swap(
        reductions.Reduction, "of_block", lambda self, block: f"tl.sum({block}, axis=1)[:, None]"
    ),
    "slices begin at 0": lambda: swap(views, "moved", lambda dim, extent, start, step=1: dim),
    "joins begin at 0": lambda: swap(joins, "moved", lambda dim, extent, start, step=1: dim),
    "permute is its own inverse": lambda: swap(
        views._RULES, "permute", lambda region, i, index: tuple(index[d] for d in i.args[1])
    ),
    "operands that broadcast are read in full": lambda: swap(
        scalars, "broadcast", lambda index, shape: index[len(index) - len(shape) :] if shape else ()
    ),
    "split indices lose their divisor": lambda: swap(
        indexing.Term, "split", lambda self, inner: (self, indexing.replace(self, extent=inner))
    ),
    "embeddings read row 0": lambda: swap(joins, "opaque", lambda text, extent, depends: ()),
    "bounds of tiles are not checked": lambda: swap(generate.Writer, "_prologue", _without_bounds),
}


def _without_bounds(writer: Any) -> list[str]:
    return [line.replace(f"< {writer.rows}", f"< {writer.rows + 32}") for line in _PROLOGUE(writer)]


_PROLOGUE = generate.Writer._prologue

if __name__ == "__main__":
    found: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (fault, plant) in enumerate(FAULTS.items()):
            take_out = plant()
            seeds = (seed for seed in range(200) if wrong_with(seed, Path(folder) / str(number)))
            found[fault] = [seed for seed in [next(seeds, None)] if seed is not None]
            take_out()
    print(json.dumps(found))
