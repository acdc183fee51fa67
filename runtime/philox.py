"""Counter-based random numbers: Philox 4x32-10 over (seed, step, index of the random op, global index of the element).

The key is the seed, low and high half. The counter is (block low, block high, op index, step). Element i of the global
tensor, row-major, gets word i % 4 of block i // 4. So a rank that has any part of the tensor computes the same numbers
for it as one that has the whole tensor.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), https://doi.org/10.1145/2063384.2063405.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
"""Added to the key at each round."""
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_BLOCKS = 1 << 15
"""Blocks computed at once, so that their buffers stay in a core's cache."""

Word = int | Tensor
"""A 32-bit word: a number for all blocks, or an int64 tensor with one for each block."""


@dataclass(frozen=True)
class RngState:
    """The RNG state: what all random ops of one forward share, on all ranks."""

    seed: int = 0
    step: int = 0
    """The number of forwards that drew before, modulo 2^32."""

    def tensor(self) -> Tensor:
        """The (2,) int64 tensor that programs take: the seed's 64 bits as a signed number, and the step."""
        seed = self.seed & ((1 << 64) - 1)
        return torch.tensor([seed - ((seed >> 63) << 64), self.step], dtype=torch.int64)


@dataclass(frozen=True)
class Part:
    """A rank's part of a tensor of shape `size`: elements [start, start + count) of each dim, padding past its end."""

    size: tuple[int, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @staticmethod
    def whole(size: Sequence[int]) -> Part:
        """The whole tensor."""
        return Part(tuple(size), (0,) * len(size), tuple(size))


def draw(state: Tensor, op_index: Tensor | int, part: Part, below: int | None = None) -> Tensor:
    """Random 32-bit words (int64) of shape `part.counts`; with `below`, whether each is less than it (bool).

    `state` is (seed, step); `op_index` tells the random ops of a forward apart. Padding has arbitrary values.
    """
    if prod(part.counts) == 0:
        return torch.empty(part.counts, dtype=torch.int64 if below is None else torch.bool, device=state.device)
    first, run = _runs(part)
    skipped = first & 3
    wide = (int(skipped.max()) + run + 3) // 4
    blocks = (first >> 2).to(state.device)[:, None] + torch.arange(wide, device=state.device)
    words = _block_words(blocks.flatten(), state, op_index, below).view(len(first), 4 * wide)
    if bool((skipped == skipped[0]).all()):
        return words.narrow(1, int(skipped[0]), run).reshape(part.counts)
    columns = skipped.to(state.device)[:, None] + torch.arange(run, device=state.device)
    return words.gather(1, columns).reshape(part.counts)


def _runs(part: Part) -> tuple[Tensor, int]:
    """The global index at which each contiguous run of elements starts, in order, and the length of all runs.

    On the CPU for any device, because it depends on sizes only: no synchronization is needed.
    """
    last = len(part.size) - 1
    run = 1
    while last >= 0 and (part.starts[last], part.counts[last]) == (0, part.size[last]):
        run *= part.size[last]
        last -= 1
    first = torch.zeros(1, dtype=torch.int64)
    if last < 0:
        return first, run
    stride = prod(part.size[last:])
    for dim in reversed(range(last)):
        offsets = (part.starts[dim] + torch.arange(part.counts[dim])) * stride
        first = (offsets[:, None] + first).flatten()
        stride *= part.size[dim]
    return first + part.starts[last] * run, part.counts[last] * run


def _block_words(blocks: Tensor, state: Tensor, op_index: Tensor | int, below: int | None) -> Tensor:
    """The four words of each block, of shape (blocks, 4)."""
    result = torch.empty((len(blocks), 4), dtype=torch.int64 if below is None else torch.bool, device=blocks.device)
    key, counter = _key_and_counter(state, op_index)
    for rows in _slices(len(blocks)):
        block_slice = blocks[rows]
        words = philox((block_slice & _LOW, block_slice >> 32, *counter), key)
        for index, word in enumerate(words):
            if below is None:
                result[rows, index] = word
            else:
                torch.lt(torch.as_tensor(word), below, out=result[rows, index])
    return result


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCKS, count)) for start in range(0, count, _BLOCKS))


def _key_and_counter(state: Tensor, op_index: Tensor | int) -> tuple[tuple[Word, Word], tuple[Word, Word]]:
    """Numbers on the CPU; elsewhere 0-d tensors, since reading their values would synchronize with the device."""
    seed, step = state.tolist() if state.device.type == "cpu" else state.unbind()
    if isinstance(op_index, Tensor) and op_index.device.type == "cpu":
        op_index = int(op_index)
    return (seed & _LOW, (seed >> 32) & _LOW), (op_index & _LOW, step & _LOW)


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """The four output words of each counter; words are less than 2^32.

    A product of two words may pass 2^63: int64 wraps around and keeps all 64 bits.
    """
    a, b, c, d = counter
    k, m = key
    for _ in range(_ROUNDS):
        p, q = _times(a, _MULTIPLIERS[0]), _times(c, _MULTIPLIERS[1])
        a, b, c, d = _mixed(q, b, k), q, _mixed(p, d, m), p
        k, m = (k + _WEYL[0]) & _LOW, (m + _WEYL[1]) & _LOW
    return a, b & _LOW, c, d & _LOW


def _times(word: Word, factor: int) -> Word:
    return word * factor


def _mixed(product: Word, other: Word, key: Word) -> Word:
    """The high half of a product, xor another word, xor the key."""
    high = product >> 32
    if not isinstance(high, Tensor) or high.dim() == 0:
        return (high ^ other ^ key) & _LOW
    high ^= other
    high ^= key
    high &= _LOW
    return high
