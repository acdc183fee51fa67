"""Random numbers as a function of where an element stands: Philox 4x32-10 over (seed, step, draw, global index).

The key is the seed, low and high half. The counter is (block low, block high, number of the draw, step), and the word
that an element gets is word i % 4 of block i // 4, where i is its row-major index in the global tensor. So a rank that
holds any part of the tensor makes the same numbers for it as one that holds it whole.

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
"""What is added to the key at each round."""
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_BLOCKS = 1 << 15
"""Blocks computed at once: their buffers stay in a core's cache."""

Word = int | Tensor
"""32 bits: one for all blocks, or int64 of one for each."""


@dataclass(frozen=True)
class RandomState:
    """What all draws of one forward share, on all ranks."""

    seed: int = 0
    step: int = 0
    """The number of the forward, modulo 2^32."""

    def tensor(self) -> Tensor:
        """(2,) int64, as programs take it; the seed's 64 bits as a signed number."""
        seed = self.seed & ((1 << 64) - 1)
        return torch.tensor([seed - ((seed >> 63) << 64), self.step], dtype=torch.int64)


@dataclass(frozen=True)
class Part:
    """The elements [start, start + count) of each dim of a tensor of shape `size`; what is past its end is padding."""

    size: tuple[int, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @staticmethod
    def whole(size: Sequence[int]) -> Part:
        """All of a tensor."""
        return Part(tuple(size), (0,) * len(size), tuple(size))


def draw(state: Tensor, number: Tensor | int, part: Part, below: int | None = None) -> Tensor:
    """Words of 32 bits (int64) of shape `part.counts`, or with `below` whether each is below it (bool).

    `state` is (seed, step), `number` tells the draws of a forward apart. Padding holds anything.
    """
    if prod(part.counts) == 0:
        return torch.empty(part.counts, dtype=torch.int64 if below is None else torch.bool, device=state.device)
    first, run = _runs(part)
    skipped = first & 3
    wide = (int(skipped.max()) + run + 3) // 4
    blocks = (first >> 2).to(state.device)[:, None] + torch.arange(wide, device=state.device)
    words = _filled(blocks.flatten(), state, number, below).view(len(first), 4 * wide)
    if bool((skipped == skipped[0]).all()):
        return words.narrow(1, int(skipped[0]), run).reshape(part.counts)
    places = skipped.to(state.device)[:, None] + torch.arange(run, device=state.device)
    return words.gather(1, places).reshape(part.counts)


def _runs(part: Part) -> tuple[Tensor, int]:
    """The global index of each run of elements that follow one another, in order, and how long all of them are.

    On the CPU, whatever the device: sizes are known there, and nobody has to wait for them.
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
        places = (part.starts[dim] + torch.arange(part.counts[dim])) * stride
        first = (places[:, None] + first).flatten()
        stride *= part.size[dim]
    return first + part.starts[last] * run, part.counts[last] * run


def _filled(blocks: Tensor, state: Tensor, number: Tensor | int, below: int | None) -> Tensor:
    """The four words of each block, (blocks, 4)."""
    made = torch.empty((len(blocks), 4), dtype=torch.int64 if below is None else torch.bool, device=blocks.device)
    key, counter = _key_and_counter(state, number)
    for rows in _slices(len(blocks)):
        some = blocks[rows]
        words = philox((some & _LOW, some >> 32, *counter), key)
        for at, word in enumerate(words):
            if below is None:
                made[rows, at] = word
            else:
                torch.lt(torch.as_tensor(word), below, out=made[rows, at])
    return made


def _slices(count: int) -> Iterator[slice]:
    return (slice(at, min(at + _BLOCKS, count)) for at in range(0, count, _BLOCKS))


def _key_and_counter(state: Tensor, number: Tensor | int) -> tuple[tuple[Word, Word], tuple[Word, Word]]:
    """Numbers on the CPU; elsewhere 0-d tensors, since reading them would make the host wait."""
    seed, step = state.tolist() if state.device.type == "cpu" else state.unbind()
    if isinstance(number, Tensor) and number.device.type == "cpu":
        number = int(number)
    return (seed & _LOW, (seed >> 32) & _LOW), (number & _LOW, step & _LOW)


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """The four words of each counter; words are numbers below 2^32.

    A product of two words may pass 2^63: int64 wraps around, and keeps all 64 bits.
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
    """The high half of a product, mixed with the low halves of two more."""
    high = product >> 32
    if not isinstance(high, Tensor) or high.dim() == 0:
        return (high ^ other ^ key) & _LOW
    high ^= other
    high ^= key
    high &= _LOW
    return high
