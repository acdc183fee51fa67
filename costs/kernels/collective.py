"""The time of a collective between the GPUs of one node.

A ring's time has three parts: a start and its hops; the bytes at the rate of the link; and, because a message goes in
chunks whose best size grows with the root of the bytes, twice the root of bytes times the cost of a chunk. A rank's
own part is copied too. In a switch that reduces, each rank sends its tensor once.

Sources: Patarasuk and Yuan (JPDC 2009); Hockney's model with pipelining, as in Thakur et al., "Optimization of
collective communication operations in MPICH" (IJHPCA 2005); NVIDIA's SHARP and NVLS.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .gpu import MICROSECOND, Gpu, Links

Array = NDArray[np.float64]
SWITCH_FROM = 8
"""Ranks from which libraries let the switch reduce."""


def node_collective_seconds(kind: str, nbytes: ArrayLike, ranks: ArrayLike, gpu: Gpu) -> Array:
    """A collective of a tensor of so many bytes over ranks of one node, in seconds.

    `kind` is all_reduce, all_gather, reduce_scatter or all_to_all; `nbytes` is the whole tensor: an all-gather's
    result, a reduce-scatter's operand.
    """
    size, n = np.asarray(nbytes, dtype=np.float64), np.asarray(ranks, dtype=np.float64)
    c = gpu.links
    rounds = 2 if kind == "all_reduce" else 1
    hops = np.ones_like(n) if kind == "all_to_all" else rounds * (n - 1)
    sent = rounds * size * (n - 1) / n + c.own * size / n
    time = _piped(sent, gpu.link_rate * c.bandwidth, c) + hops * c.hop_us * MICROSECOND
    if kind == "all_reduce" and c.switch:
        switched = _piped(size * (1 + 1 / n), gpu.link_rate * c.switch, c) + (n - 1) * c.hop_us * MICROSECOND
        time = np.where(n >= SWITCH_FROM, np.minimum(time, switched), time)
    total: Array = np.where(n > 1, time + c.launch_us * MICROSECOND, 0.0)
    return total


def _piped(nbytes: Array, rate: float, c: Links) -> Array:
    """Bytes at a rate, in chunks of the best size."""
    seconds: Array = nbytes / rate + 2 * np.sqrt(c.chunk_us * MICROSECOND * nbytes / rate)
    return seconds
