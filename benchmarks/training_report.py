"""Statistics of the errors on published training runs: by source, on sweeps, and beside the spread of equal runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

Row = Mapping[str, str]
Found = Mapping[str, object]
CONFIGURATION = (
    "model", "n_layers", "d_model", "n_heads", "seq_len", "gpu", "n_gpus", "tp", "pp", "vpp", "dp", "cp", "ep", "mbs",
    "gbs", "precision", "zero_stage", "recompute", "schedule", "vocab",
)  # fmt: skip
"""Columns in which two runs of one configuration are equal."""
FEWEST = 5
"""Rows of a sweep."""


def lines(rows: Sequence[Row], found: Sequence[Found]) -> Iterator[str]:
    """The report on rows and what was found of each: an error, or why it was skipped."""
    pairs = [(row, each) for row, each in zip(rows, found, strict=True) if "error" in each]
    yield f"{len(pairs)} of {len(rows)} rows are expressed"
    for reason, count in Counter(str(each["skipped"]) for each in found if "skipped" in each).most_common():
        yield f"{count:5} are not: {reason}"
    for title, key in (("source", "source"), ("GPU", "gpu"), ("precision", "precision"), ("recompute", "recompute")):
        yield f"by {title}:"
        for name, errors in _grouped(pairs, lambda row, key=key: row[key]):
            middle = f"median {np.median(np.abs(errors)):6.1%}  bias {np.median(errors):+7.1%}"
            yield f"{len(errors):5} rows  {middle}  {name}"
    medians = {name: np.median(np.abs(errors)) for name, errors in _grouped(pairs, lambda row: row["source"])}
    errors = np.array([_number(each, "error") for _, each in pairs])
    yield f"mean of the sources' medians {np.mean(list(medians.values())):.1%}"
    yield f"sources above 20 %: {', '.join(name for name, median in medians.items() if median > 0.2) or 'none'}"
    yield f"rows within 20 %: {np.mean(np.abs(errors) <= 0.2):.0%}, within 10 %: {np.mean(np.abs(errors) <= 0.1):.0%}"
    for family in ("bigscience", "internevo"):
        agreement, sweeps = _agreement([pair for pair in pairs if pair[0].get("family") == family])
        if sweeps:
            yield f"Kendall's tau of tokens a second on {sweeps} sweeps of {family}: {agreement:.2f}"
    for name, peaks in _grouped(
        [pair for pair in pairs if "peak_error" in pair[1]], lambda row: row["mem_basis"], "peak_error"
    ):
        middle = f"median {np.median(np.abs(peaks)):6.1%}  bias {np.median(peaks):+7.1%}"
        yield f"{len(peaks):5} peaks of memory  {middle}  {name}"
    same = [abs(np.log(a / b)) for a, b in _repeated(pairs)]
    if same:
        yield f"{len(same)} pairs of runs of one configuration differ by {np.expm1(np.median(same)):.1%} (median)"


def _grouped(
    pairs: Sequence[tuple[Row, Found]], key: Callable[[Row], str], error: str = "error"
) -> list[tuple[str, np.ndarray]]:
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for row, found in pairs:
        groups[key(row)].append(_number(found, error))
    return [(name, np.array(errors)) for name, errors in groups.items()]


def _agreement(pairs: Sequence[tuple[Row, Found]]) -> tuple[float, int]:
    """Kendall's tau over the pairs of rows of each sweep, all together, and how many sweeps there are."""
    groups: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row, found in pairs:
        tokens = float(row["gbs"]) * float(row["seq_len"]) / float(row["n_gpus"])
        groups[row["location"]].append((tokens / _number(found, "predicted"), tokens / _number(found, "measured")))
    sweeps = [sweep for sweep in groups.values() if len(sweep) >= FEWEST]
    signs = [
        np.sign((a[0] - b[0]) * (a[1] - b[1])) for sweep in sweeps for a, b in combinations(sweep, 2) if a[1] != b[1]
    ]
    return (float(np.mean(signs)) if signs else 0.0), len(sweeps)


def _repeated(pairs: Sequence[tuple[Row, Found]]) -> Iterator[tuple[float, float]]:
    """The measured times of runs of one configuration, of other versions of the software, or of another day."""
    groups: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    for row, found in pairs:
        groups[tuple(row.get(column, "") for column in CONFIGURATION)].append(_number(found, "measured"))
    for times in groups.values():
        yield from combinations(times, 2)


def _number(found: Found, key: str) -> float:
    value = found[key]
    assert isinstance(value, float), "a time or an error"
    return value
