"""Sums that grow in place: only where nobody else can see it."""

from __future__ import annotations

import torch
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.records import Instruction
from stretto.runtime.rank.in_place_sums import add_in_place, in_place_adds


def add(a: int, b: int, out: int) -> Instruction:
    return Instruction("aten.add.Tensor", (Slot(a), Slot(b)), {}, (out,))


def test_all_but_the_first_add_of_a_chain_grow() -> None:
    assert in_place_adds([add(0, 1, 4), add(4, 2, 5), add(5, 3, 6)], (), {6}) == {1, 2}


def test_a_sum_that_something_else_reads_is_not_overwritten() -> None:
    view = Instruction("aten.t.default", (Slot(4),), {}, (7,))
    assert in_place_adds([add(0, 1, 4), view, add(4, 2, 5)], (), {5, 7}) == set()
    assert in_place_adds([add(0, 1, 4), add(4, 2, 5)], (), {4, 5}) == set()
    assert in_place_adds([add(0, 1, 4), add(4, 4, 5)], (), {5}) == set()


def test_what_no_add_made_is_not_overwritten() -> None:
    assert in_place_adds([Instruction("aten.neg.default", (Slot(0),), {}, (4,)), add(4, 1, 5)], (), {5}) == set()


def test_a_slot_that_is_set_twice_is_not_overwritten() -> None:
    again = Instruction("aten.neg.default", (Slot(0),), {}, (4,))
    assert in_place_adds([add(0, 1, 4), again, add(4, 2, 5)], (), {5}) == set()
    assert in_place_adds([add(0, 1, 4), add(4, 2, 5)], (4,), {5}) == set()


def test_adds_with_a_factor_stay() -> None:
    scaled = Instruction("aten.add.Tensor", (Slot(4), Slot(2)), {"alpha": 2}, (5,))
    assert in_place_adds([add(0, 1, 4), scaled], (), {5}) == set()


def test_an_addend_that_does_not_fit_makes_a_new_tensor() -> None:
    total = torch.ones(2)
    for other in (torch.ones(3, 2), torch.ones(2, dtype=torch.float64), 1.0):
        assert torch.equal(add_in_place(total, other), total + other) and torch.equal(total, torch.ones(2))
