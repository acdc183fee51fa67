"""The time of a layer of routed experts on one rank: rows sorted by expert, two products in groups, and their sum.

The kernels of inference engines are meant: each rank has all tokens, computes the experts that are its own, and leaves
zeros for the others'. An expert without a row reads no weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .gpu import BYTES, Gpu
from .matmul import batched_matmul_seconds


def experts_seconds(
    tokens: ArrayLike, hidden: ArrayLike, intermediate: ArrayLike, chosen: ArrayLike, experts: ArrayLike, dtype: str,
    gpu: Gpu, *, tensor_ranks: ArrayLike = 1, expert_ranks: ArrayLike = 1,
) -> NDArray[np.float64]:  # fmt: skip
    """A gated layer in seconds: `chosen` experts a token, evenly routed; `intermediate` is that of a whole expert."""
    t, h, i, k, e, tp, ep = (
        np.asarray(x, dtype=np.float64)
        for x in (tokens, hidden, intermediate, chosen, experts, tensor_ranks, expert_ranks)
    )
    c = gpu.experts[dtype]
    own, part = e / ep, i / tp
    rows = t * k / ep
    used = np.minimum(own, np.maximum(rows, 1.0))
    each = np.maximum(rows / own, 1.0)
    products = batched_matmul_seconds(used, each, 2 * part, h, dtype, gpu, c) + batched_matmul_seconds(
        used, each, h, part, dtype, gpu, c
    )
    moved = BYTES["bf16"] * (3 * rows * part + 2 * t * k * h + t * h)
    time: NDArray[np.float64] = products + moved / (gpu.memory_rate * c.memory)
    return time
