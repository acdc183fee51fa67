"""The time of a matrix product from its shape: waves of tiles on the processors, or the memory, whichever takes
longer.

A kernel cuts the result into tiles, and a long inner dim into parts; libraries choose both by the shape, so the best
of the usual ones counts. A tile takes its products at the sustained rate, or what it reads at a processor's rate, and
a constant for starting and ending. Tiles run in waves, of one on each processor; a last wave that is not full takes
nearly as long as a full one. A product that keeps few processors busy does not reach the memory's bandwidth.

Sources: NVIDIA, "Matrix Multiplication Background User's Guide" (tile and wave quantization); Osama et al.,
"Stream-K" (arXiv 2301.03598) for splitting the inner dim; Williams et al., "Roofline" (CACM 2009).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .gpu import BYTES, MICROSECOND, Gpu, Matmul

Array = NDArray[np.float64]

TILES = np.array(
    [(256, 128), (128, 256), (192, 128), (128, 192), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64),
     (128, 32), (32, 128), (16, 128), (32, 64), (64, 32), (16, 64)], dtype=np.float64,
)  # fmt: skip
"""Rows and columns of a tile: those that libraries have for 16-bit formats."""
TILES_FP8 = np.array([(64, 64), (64, 128), (128, 128)], dtype=np.float64)
"""Those of 8-bit formats, whose kernels do not split the inner dim either."""
PARTS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128], dtype=np.float64)
"""Into how many parts the inner dim may be cut."""
SHORTEST_PART = 256
"""Elements: a shorter part of the inner dim is not worth its sum."""


def matmul_seconds(m: ArrayLike, n: ArrayLike, k: ArrayLike, dtype: str, gpu: Gpu) -> Array:
    """The time of (m, k) times (k, n) in seconds: inputs in `dtype`, the result in 16 bits or wider."""
    return batched_matmul_seconds(1.0, m, n, k, dtype, gpu)


def batched_matmul_seconds(
    batch: ArrayLike, m: ArrayLike, n: ArrayLike, k: ArrayLike, dtype: str, gpu: Gpu, constants: Matmul | None = None
) -> Array:
    """The time of `batch` products (m, k) times (k, n) by one kernel, in seconds. They share no operand.

    `constants` are those of another kernel, which splits no inner dim.
    """
    groups, m, n, k = (np.asarray(size, dtype=np.float64)[..., None, None] for size in (batch, m, n, k))
    c = constants or gpu.matmuls[dtype]
    tiles = TILES if BYTES[dtype] > 1 else TILES_FP8
    parts = PARTS if BYTES[dtype] > 1 and constants is None else PARTS[:1]
    rows, columns = tiles[:, :1], tiles[:, 1:]
    inner = np.ceil(k / parts)
    count = groups * np.ceil(m / rows) * np.ceil(n / columns) * parts
    tile = _tile_seconds(rows, columns, inner, dtype, gpu, c)
    read = (BYTES[dtype] * (m * k + n * k) + max(BYTES[dtype], 2) * m * n) * groups / (gpu.memory_rate * c.memory)
    few = np.maximum(1.0, c.spread * gpu.processors / np.minimum(count, gpu.processors))
    sums = 4 * m * n * groups * parts / (gpu.memory_rate * c.memory) + c.split_us * MICROSECOND
    time = np.maximum(_waves(count / gpu.processors, c.tail) * tile, read * few) + np.where(parts > 1, sums, 0.0)
    possible = (parts == 1) | (inner >= SHORTEST_PART)
    best: Array = np.where(possible, time, np.inf).min(axis=(-2, -1)) + c.launch_us * MICROSECOND
    return best


def _tile_seconds(rows: Array, columns: Array, inner: Array, dtype: str, gpu: Gpu, c: Matmul) -> Array:
    """One tile on one processor."""
    products = 2 * rows * columns * inner / (gpu.peak(dtype) / gpu.processors * c.math)
    reads = (rows + columns) * inner * BYTES[dtype] / (c.feed_gb_s * 1e9)
    time: Array = np.maximum(products, reads) + c.tile_us * MICROSECOND
    return time


def _waves(filled: Array, tail: float) -> Array:
    """Waves, of which the last may be filled partly: other processors' tiles hide a share of what it lacks."""
    full = np.floor(filled)
    rest = filled - full
    waves: Array = full + np.where(rest > 0, 1 - np.where(full > 0, tail * (1 - rest), 0.0), 0.0)
    return waves
