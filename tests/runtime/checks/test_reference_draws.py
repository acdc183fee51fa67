"""A check's reference draws by the definition of Philox, apart from the generator that programs draw with."""

from __future__ import annotations

import itertools

import pytest
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest
from stretto.dsl.plan import Plan
from stretto.runtime import philox
from stretto.runtime.checks.generator_draws import wrong_draws
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.reference_draws import reference_draw
from stretto.runtime.philox import Part, RngState, Word, draw
from torch import Tensor, nn


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (0,), ()])
@pytest.mark.parametrize("below", [None, 1 << 31])
def test_both_generators_give_the_published_numbers(shape: tuple[int, ...], below: int | None) -> None:
    for seed, step, number in itertools.product((0, -3, 1 << 40), (0, 5), (0, 9)):
        state = RngState(seed, step).tensor()
        whole = reference_draw(state, number, shape, below)
        assert torch.equal(whole, draw(state, number, Part.whole(shape), below))


DRAWS = {
    (seed, step, number): reference_draw(RngState(seed, step).tensor(), number, (1 << 14,), None).double() / 2**32
    for seed, step, number in itertools.product((0, 1 << 33), (0, 1), (0, 1))
}


@pytest.mark.parametrize("key", DRAWS)
def test_draws_are_uniform_and_their_elements_independent(key: tuple[int, int, int]) -> None:
    drawn, n = DRAWS[key], 1 << 14
    assert abs(drawn.mean() - 1 / 2) < 5 / (12 * n) ** 0.5
    assert abs(drawn.var() - 1 / 12) < 5 / (180 * n) ** 0.5
    for lag in (1, 2, 3, 4, 5, 8):
        assert abs(_correlation(drawn[:-lag], drawn[lag:])) < 5 / n**0.5


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(DRAWS, 2)))
def test_draws_of_other_seeds_steps_and_ops_are_independent(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    assert abs(_correlation(DRAWS[one], DRAWS[other])) < 5 / (1 << 14) ** 0.5


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.again = nn.Linear(6, 8), nn.Dropout(0.25), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.drop(self.up(x))).pow(2).mean()


def same_in_every_step(state: Tensor, number: Tensor | int) -> tuple[tuple[Word, Word], tuple[Word, Word]]:
    key, (index, _) = _RIGHT(state, number)
    return key, (index, 0)


def same_in_every_op(state: Tensor, number: Tensor | int) -> tuple[tuple[Word, Word], tuple[Word, Word]]:
    key, (_, step) = _RIGHT(state, number)
    return key, (0, step)


def half_a_seed(state: Tensor, number: Tensor | int) -> tuple[tuple[Word, Word], tuple[Word, Word]]:
    (low, _), counter = _RIGHT(state, number)
    return (low, 0), counter


_RIGHT = philox._key_and_counter


@pytest.mark.parametrize("fault", [same_in_every_step, same_in_every_op, half_a_seed, None])
def test_a_fault_of_the_programs_generator_is_seen(fault: object, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"x": torch.randn(4, 6).double()}
    program = compile_program(CompileRequest.of(Net().double(), (), inputs, Plan.parse("mesh (dp=2)"))).program
    if fault is not None:
        monkeypatch.setattr(philox, "_key_and_counter", fault)
    assert check(program).passed == (fault is None)


DRAWING = compile_program(CompileRequest.of(Net(), (), {"x": torch.randn(4, 6)}, Plan.parse("mesh (dp=2)"))).program


@pytest.mark.parametrize("bits", [8, 16, 31])
@pytest.mark.parametrize("word", [0, 1])
def test_a_random_op_or_a_step_that_loses_its_high_bits_is_seen(
    bits: int, word: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shortened(state: Tensor, number: Tensor | int) -> object:
        key, counter = _RIGHT(state, number)
        kept = [int(part) % (1 << bits) if index == word else part for index, part in enumerate(counter)]
        return key, tuple(kept)

    monkeypatch.setattr(philox, "_key_and_counter", shortened)
    assert {row.name.split()[0] for row in wrong_draws(DRAWING)} == {"random" if word == 0 else "step"}


def test_elements_of_large_tensors_are_drawn_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(wrong_draws(DRAWING))
    right = philox._block_words
    monkeypatch.setattr(philox, "_block_words", lambda blocks, *rest: right(blocks % (1 << 15), *rest))
    assert len(list(wrong_draws(DRAWING))) > 2
