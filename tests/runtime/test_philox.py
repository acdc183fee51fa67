"""Random numbers are Philox's own, the same for every part of a tensor, and spread as they should be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stretto.runtime.philox import Part, RngState, draw, philox

STATE = RngState(seed=5, step=3).tensor()

# Random123's known answers (kat_vectors, philox4x32 10): counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_published_answers_for_numbers_and_for_tensors(counter: str, key: str, result: str) -> None:
    a, b, c, d = words(counter)
    k, m = words(key)
    assert philox((a, b, c, d), (k, m)) == words(result)
    tensors = philox(tuple(torch.tensor([n, n]) for n in (a, b, c, d)), (k, m))  # type: ignore[arg-type]
    assert [word.tolist() for word in tensors if isinstance(word, torch.Tensor)] == [[n, n] for n in words(result)]


def test_seed_number_and_step_may_be_tensors_as_on_a_device_that_nobody_waits_for() -> None:
    blocks, one = torch.arange(5), torch.tensor
    words = philox((blocks, one(0), one(13), one(11)), (one(9), one(7)))
    expected = philox((blocks, 0, 13, 11), (9, 7))
    assert [torch.as_tensor(a).tolist() for a in words] == [torch.as_tensor(b).tolist() for b in expected]


def test_an_element_is_a_word_of_the_block_of_its_index() -> None:
    state = RngState(seed=(7 << 32) + 9, step=11).tensor()
    drawn = draw(state, 13, Part.whole((2, 5)))
    first, second, third = (philox((block, 0, 13, 11), (9, 7)) for block in range(3))
    assert drawn.flatten().tolist() == [*first, *second, *third[:2]]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_every_part_of_a_draw_is_the_part_of_the_whole(data: st.DataObject) -> None:
    size = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    starts = tuple(data.draw(st.integers(0, n - 1)) for n in size)
    counts = tuple(data.draw(st.integers(1, n - start)) for n, start in zip(size, starts, strict=True))
    window = tuple(slice(start, start + count) for start, count in zip(starts, counts, strict=True))
    for below in (None, 1 << 31):
        whole = draw(STATE, 2, Part.whole(size), below)
        assert torch.equal(draw(STATE, 2, Part(size, starts, counts), below), whole[window])


def test_padding_shifts_nothing_and_holds_anything() -> None:
    whole = draw(STATE, 0, Part.whole((5, 3)))
    last = draw(STATE, 0, Part((5, 3), (3, 0), (3, 3)))
    assert last.shape == (3, 3) and torch.equal(last[:2], whole[3:])
    assert draw(STATE, 0, Part((5, 3), (6, 0), (3, 3))).shape == (3, 3)
    assert draw(STATE, 0, Part.whole((0, 3)), 1).shape == (0, 3)
    assert draw(STATE, 0, Part.whole(())).shape == ()


def test_seed_step_and_number_each_change_everything() -> None:
    part = Part.whole((64,))
    states = [RngState(5, 3), RngState(6, 3), RngState(5, 4), RngState(5 + (1 << 32), 3)]
    drawn = [draw(state.tensor(), 0, part) for state in states] + [draw(STATE, 1, part)]
    assert all(int((a == b).sum()) <= 1 for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_seed_of_64_bits_fits_and_a_negative_one_too() -> None:
    assert RngState(2**64 - 1).tensor().tolist() == [-1, 0] == RngState(-1).tensor().tolist()


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_masks_keep_their_share_in_every_block_and_place(probability: float) -> None:
    count = 1 << 18
    mask = draw(STATE, 4, Part.whole((count,)), round(probability * 2**32))
    limit = 5 * math.sqrt(probability * (1 - probability) / count)
    assert abs(float(mask.double().mean()) - probability) < limit
    for lane in range(4):
        assert abs(float(mask[lane::4].double().mean()) - probability) < 2 * limit
    both = (mask[1:] & mask[:-1]).double().mean()
    assert abs(float(both) - probability**2) < 2 * limit


def test_a_threshold_of_all_words_keeps_everything_and_of_none_nothing() -> None:
    part = Part.whole((100,))
    assert bool(draw(STATE, 0, part, 1 << 32).all()) and not bool(draw(STATE, 0, part, 0).any())
