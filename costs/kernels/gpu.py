"""A GPU: facts of its data sheet, and the fitted constants of its kernels. Both come from a file of `costs/gpus`.

A file is TOML, and each key bears its unit. A GPU without constants of its own names one whose constants it takes
(`like`): all of them are shares of its own peaks, or times that do not depend on them. The bytes that a processor
takes in are scaled by the processor's peak.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ...diagnostics import StrettoError
from ...dsl.spelling import nearest

T = TypeVar("T")
FOLDER = Path(__file__).parents[1] / "gpus"
MICROSECOND = 1e-6
BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
"""The bytes of an element of each format."""
_OF_A_PROCESSOR = ("feed_gb_s", "softmax_g_s")
"""Constants that are rates of one processor: they go with its peak."""


@dataclass(frozen=True)
class Matmul:
    """Constants of matrix products in one format."""

    launch_us: float
    """From the start of a kernel to its first tile, and back (microseconds)."""
    math: float
    """The share of the peak that tiles reach when data is there: the sustained clock, mostly."""
    memory: float
    """The share of the memory's bandwidth that a kernel reaches."""
    tile_us: float
    """What a tile takes beside its products: filling the pipeline, and writing the result (microseconds)."""
    feed_gb_s: float
    """What one processor takes in from the cache (GB/s)."""
    spread: float
    """The share of the processors that it takes to use all of the memory's bandwidth."""
    tail: float
    """The share of a last, partly filled wave that the next waves hide."""
    split_us: float
    """Adding up the parts of a product that was split along its inner dim (microseconds)."""


@dataclass(frozen=True)
class Attention:
    """Constants of fused attention in one format."""

    launch_us: float
    """As of a matrix product (microseconds)."""
    math: float
    """The share of the peak that its two products reach."""
    softmax_g_s: float
    """Scores that one processor exponentiates and sums (10^9 a second)."""
    memory: float
    """The share of the memory's bandwidth, over a prompt."""
    block_us: float
    """What a block of queries takes beside its scores (microseconds)."""
    tail: float
    """The share of the longest block by which the processors end at unlike times."""
    decode_memory: float
    """The share of the memory's bandwidth in a step of decoding."""
    decode_spread: float
    """The share of the processors that decoding needs to use all of that bandwidth."""


@dataclass(frozen=True)
class Links:
    """Constants of collectives between the GPUs of a node."""

    launch_us: float
    """A collective's start (microseconds)."""
    hop_us: float
    """A step of the ring (microseconds)."""
    bandwidth: float
    """The share of a link's rate that a ring reaches."""
    chunk_us: float
    """What a chunk of the pipeline takes beside its bytes (microseconds)."""
    own: float
    """What the rank's own part costs, in bytes that are sent."""
    switch: float
    """The share of a link's rate that a reduction in the switch reaches; 0 where the switch has none."""


@dataclass(frozen=True)
class Gpu:
    """Peaks are of dense products, in floating-point operations a second; bytes are bytes."""

    name: str
    processors: int
    """Streaming multiprocessors, or compute units."""
    peaks: Mapping[str, float]
    """By format."""
    memory_bytes: float
    memory_rate: float
    """Bytes a second."""
    link_rate: float
    """Bytes a second to the other GPUs of a node, in one direction; 0 without such links."""
    matmuls: Mapping[str, Matmul]
    """By format."""
    experts: Mapping[str, Matmul]
    """Of products in groups of unlike rows, by format: their kernels are others, and sort the rows first."""
    attentions: Mapping[str, Attention]
    links: Links
    source: str

    def peak(self, dtype: str) -> float:
        """The peak of a format (1/s). Formats that the data sheet does not list are refused. Errors: E0801."""
        found = self.peaks.get(dtype)
        if found is None:
            known = ", ".join(self.peaks)
            raise StrettoError(
                "E0801",
                f'"{self.name}" has no peak for {dtype}',
                help=f"its file {FOLDER.name}/{self.name}.toml has {known}; add [peaks_tflop_s] {dtype}",
            )
        return found


@cache
def gpu(name: str) -> Gpu:
    """The GPU of this name. Errors: E0802."""
    if name not in names():
        close = nearest(name, names())
        raise StrettoError(
            "E0802",
            f'the GPU "{name}" is unknown',
            help=(f'did you mean "{close}"? ' if close else "")
            + f"known are {', '.join(names())}; to add one, write costs/gpus/{name}.toml after another",
        )
    return _read(name)


@cache
def names() -> tuple[str, ...]:
    """All GPUs that have a file."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def _read(name: str) -> Gpu:
    text = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    peaks = {dtype: tera * 1e12 for dtype, tera in text["peaks_tflop_s"].items()}
    facts: dict[str, Any] = {
        "name": name, "processors": text["processors"], "peaks": peaks, "memory_bytes": text["memory_gb"] * 1e9,
        "memory_rate": text["memory_gb_s"] * 1e9, "link_rate": text["link_gb_s"] * 1e9, "source": text["source"],
    }  # fmt: skip
    if "like" in text:
        other = gpu(text["like"])
        faster = _processor(facts) / _processor(vars(other))
        found = {"matmuls": other.matmuls, "experts": other.experts, "attentions": other.attentions}
        return Gpu(**facts, **_for_formats(found, peaks, faster), links=other.links)
    fitted = text["fitted"]
    found = {
        "matmuls": {dtype: _constants(Matmul, each) for dtype, each in fitted["matmul"].items()},
        "experts": {dtype: _constants(Matmul, each) for dtype, each in fitted["experts"].items()},
        "attentions": {dtype: _constants(Attention, each) for dtype, each in fitted["attention"].items()},
    }
    return Gpu(**facts, **_for_formats(found, peaks, 1.0), links=_constants(Links, fitted["links"]))


def _processor(facts: Mapping[str, Any]) -> float:
    """The peak of one processor in a 16-bit format."""
    rate: float = facts["peaks"]["fp16"] / facts["processors"]
    return rate


def _for_formats(found: Mapping[str, Mapping[str, Any]], peaks: Mapping[str, float], faster: float) -> dict[str, Any]:
    """The constants for every format that has a peak: another one's are bf16's. Rates of a processor are scaled."""
    return {
        kind: {dtype: _scaled(constants.get(dtype, constants["bf16"]), faster) for dtype in peaks}
        for kind, constants in found.items()
    }


def _scaled(constants: T, faster: float) -> T:
    values = vars(constants)
    return type(constants)(**{name: v * faster if name in _OF_A_PROCESSOR else v for name, v in values.items()})


def _constants(kind: type[T], values: Mapping[str, float]) -> T:
    return kind(**{each.name: float(values[each.name]) for each in fields(kind)})  # type: ignore[arg-type]
