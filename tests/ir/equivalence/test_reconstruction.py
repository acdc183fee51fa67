"""The global tensors that ranks' tensors may be parts of."""

import pytest
import torch
from stretto.ir.equivalence.reconstruction import Part, candidates
from stretto.ir.interpreter.cutting import agree
from stretto.ir.interpreter.grid import Grid
from torch import Tensor

GRID = Grid((("a", 2), ("b", 3)))


def chunks(whole: Tensor, order: tuple[str, ...], dim: int) -> list[Tensor]:
    parts = whole.chunk(GRID.size(order), dim)
    return [parts[GRID.coordinate(rank, order)] for rank in range(GRID.ranks)]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a"), ("a",), ("b",), ()])
def test_chunks_nest_in_any_order(order: tuple[str, ...], dim: int) -> None:
    whole = torch.randn(6, 12)
    found = [part for each, part in candidates(chunks(whole, order, dim), GRID) if torch.equal(each, whole)]
    assert found[:1] == [Part.CHUNK]


@pytest.mark.parametrize(("cut", "summed"), [("a", "b"), ("b", "a")])
def test_terms_of_a_sum_over_one_axis_are_chunks_over_the_other(cut: str, summed: str) -> None:
    terms = torch.randn(GRID.size([summed]), 6, 4, dtype=torch.float64)
    local = [
        terms[GRID.coordinate(rank, [summed])].chunk(GRID.size([cut]))[GRID.coordinate(rank, [cut])]
        for rank in range(GRID.ranks)
    ]
    same = [part for each, part in candidates(local, GRID) if each.shape == (6, 4) and agree(each, terms.sum(0))]
    assert same == [Part.TERM]


def test_padding_at_the_end_is_left_out() -> None:
    whole = torch.randn(5, 4)
    padded = torch.cat([whole, torch.full((1, 4), float("nan"))])
    found = candidates(chunks(padded, ("b", "a"), 0), GRID)
    assert any(part is Part.CHUNK and torch.equal(each, whole) for each, part in found)


def test_no_candidate_comes_twice() -> None:
    rank_tensors = list(torch.randn(GRID.ranks, 2, 2))
    found = [each for each, _ in candidates(rank_tensors, GRID)]
    assert not any(torch.equal(one, other) for i, one in enumerate(found) for other in found[:i])
