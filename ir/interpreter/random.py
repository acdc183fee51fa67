"""`nn.random` by definition: Philox 4x32-10, one counter for every four elements of the global tensor.

Counter words: low and high half of the block's index (element // 4), the number of the random op, the step. Key words:
low and high half of the seed. Element i is word i % 4 of its block.

Source: Random123's definition, https://doi.org/10.1145/2063384.2063405; independent of `runtime/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]


def random_words(
    state: Tensor, number: Tensor, like: Tensor | None, size: Sequence[int], below: int | None = None
) -> Tensor:
    """The global random tensor: int64 words, or with `below` whether each word is below it."""
    elements = prod(size)
    block = np.arange(-(-elements // 4), dtype=np.uint64)
    seed, step = (int(n) % 2**64 for n in state)
    key = np.array([seed % 2**32, seed >> 32], dtype=np.uint64)
    counter = np.stack([block % 2**32, block >> 32, *(np.full_like(block, int(n) % 2**32) for n in (number, step))])
    words = philox(counter, key).T.reshape(-1)[:elements]
    drawn = torch.from_numpy((words < below) if below is not None else words.astype(np.int64))
    return drawn.reshape(tuple(size))


def philox(counter: Words, key: Words) -> Words:
    """counter (4, n), key (2,) to (4, n): ten rounds of the S-P network, all words below 2^32.

    >>> [hex(int(word)) for word in philox(np.zeros((4, 1), np.uint64), np.zeros(2, np.uint64))[:, 0]]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    factors = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
    bump = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    for round_number in range(10):
        keys = (key + np.uint64(round_number) * bump) & low
        product = counter[[0, 2]] * factors
        high_half, low_half = product >> np.uint64(32), product & low
        counter = np.stack(
            [high_half[1] ^ counter[1] ^ keys[0], low_half[1], high_half[0] ^ counter[3] ^ keys[1], low_half[0]]
        )
    return counter
