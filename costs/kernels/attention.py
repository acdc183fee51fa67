"""The time of fused attention from its shape, over a prompt and in one step of decoding.

Over a prompt a kernel takes blocks of 128 queries of a head, and for each the keys that they see, 64 at a time. A
block's products and its softmax hide each other partly: the time is the root of the sum of their squares. Blocks of
unlike length are spread over the processors, which end at unlike times. In decoding all keys and values are read
once; few rows and heads keep few processors busy.

Sources: Dao, "FlashAttention-2" (arXiv 2307.08691), sections 3.2 and 3.3; Shah et al., "FlashAttention-3" (arXiv
2407.08608), section 3.2, for products that hide the softmax.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .gpu import BYTES, MICROSECOND, Gpu

Array = NDArray[np.float64]
QUERIES = 128
"""Queries of a block."""
KEYS = 64
"""Keys that a block takes at a time."""


def attention_seconds(
    batch: ArrayLike, queries: ArrayLike, keys: ArrayLike, heads: ArrayLike, key_heads: ArrayLike, size: ArrayLike,
    causal: ArrayLike, dtype: str, gpu: Gpu,
) -> Array:  # fmt: skip
    """Attention over a prompt in seconds: `size` is the elements of a head, `causal` whether later keys are hidden."""
    b, q, kv, h, g, d = (np.asarray(x, dtype=np.float64) for x in (batch, queries, keys, heads, key_heads, size))
    c = gpu.attentions[dtype]
    score = np.hypot(4 * d / (gpu.peak(dtype) / gpu.processors * c.math), 1 / (c.softmax_g_s * 1e9))
    blocks = np.ceil(q / QUERIES)
    longest = np.ceil(kv / KEYS) * KEYS
    seen = np.where(np.asarray(causal) & (blocks > 1), np.minimum(longest, (kv + QUERIES + KEYS) / 2), longest)
    block = QUERIES * score * longest + c.block_us * MICROSECOND
    count = blocks * b * h
    work = count * (QUERIES * score * seen + c.block_us * MICROSECOND) / gpu.processors
    late = np.where(count > gpu.processors, c.tail * block, 0.0)
    moved = BYTES[dtype] * d * b * 2 * (h * q + g * kv) / (gpu.memory_rate * c.memory)
    time: Array = np.maximum(work + late, block) + moved + c.launch_us * MICROSECOND
    return time


def decode_seconds(
    batch: ArrayLike, keys: ArrayLike, heads: ArrayLike, key_heads: ArrayLike, size: ArrayLike, dtype: str, gpu: Gpu
) -> Array:
    """One query a row against `keys` cached keys and values, in seconds."""
    b, kv, h, g, d = (np.asarray(x, dtype=np.float64) for x in (batch, keys, heads, key_heads, size))
    c = gpu.attentions[dtype]
    parts = np.clip(np.floor(gpu.processors / (b * g)), 1, np.maximum(np.ceil(kv / (4 * KEYS)), 1))
    busy = np.minimum(b * g * parts / gpu.processors, 1.0)
    rate = gpu.memory_rate * c.decode_memory * np.minimum(1.0, busy / c.decode_spread)
    waves = np.ceil(b * g * parts / gpu.processors)
    read = BYTES[dtype] * d * 2 * b * (g * kv + h)
    time: Array = read / rate + waves * c.block_us * MICROSECOND + c.launch_us * MICROSECOND
    return time
