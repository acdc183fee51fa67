"""The draws of a check's reference, by the definition of Philox 4x32-10, element by element, in numpy.

They share nothing with `philox.py`, which the program draws with, so that a fault there shows in a check: a draw that
ignores the seed, the step or the index, or a rank's part that begins at another element.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), https://doi.org/10.1145/2063384.2063405.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK, _HALF = 0xFFFFFFFF, np.uint64(32)


def reference_draw(state: Tensor, op_index: int, shape: Sequence[int], below: int | None, start: int = 0) -> Tensor:
    """The random words (int64) of a whole tensor, or with `below` whether each is less than it (bool).

    `start` is the index of its first element, for a part of a larger tensor.

    >>> reference_draw(torch.zeros(2, dtype=torch.int64), 0, [4], None).tolist()
    [1713891541, 3781805453, 3159116620, 2600524760]
    """
    seed, step = (int(number) & 0xFFFFFFFFFFFFFFFF for number in state)
    element = np.arange(start, start + prod(shape), dtype=np.uint64)
    block = element >> np.uint64(2)
    counter = [block & np.uint64(_MASK), block >> _HALF, _all(op_index, block), _all(step, block)]
    key = [seed & _MASK, seed >> 32]
    for _ in range(10):
        first, second = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = [
            (second >> _HALF) ^ counter[1] ^ np.uint64(key[0]),
            second & np.uint64(_MASK),
            (first >> _HALF) ^ counter[3] ^ np.uint64(key[1]),
            first & np.uint64(_MASK),
        ]
        key = [(word + bump) & _MASK for word, bump in zip(key, _KEY_STEPS, strict=True)]
    words = np.choose((element & np.uint64(3)).astype(np.int64), counter)
    drawn = torch.from_numpy(words < below if below is not None else words.astype(np.int64))
    return drawn.reshape(tuple(shape))


def _all(
    number: int, like: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return np.full_like(like, int(number) & _MASK)
