"""The RNG state of a compiled model: equal masks under every plan, new masks at every forward."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import stretto
import torch
from stretto.driver.model.compiled_module import random_state, set_random_state
from stretto.runtime.philox import RngState
from torch import Tensor, nn

from ..models import PLANS, PlainGPT, train


class Dropping(PlainGPT):
    """The GPT with a dropout behind its embedding and behind each half of its layers."""

    def __init__(self, p: float = 0.1, layers: int = 2) -> None:
        super().__init__(layers)
        for block in self.blocks:
            assert isinstance(block.attention, nn.Module) and isinstance(block.down, nn.Module)
            block.attention = nn.Sequential(block.attention, nn.Dropout(p))
            block.down = nn.Sequential(block.down, nn.Dropout(p))
        self.embed = nn.Sequential(self.embed, nn.Dropout(p))  # type: ignore[assignment]


ADAPTED = {
    name: text.replace('"*.o_proj", "*.down"', '"*.o_proj", "*.down.0"').replace('"embed"', '"embed.0"')
    for name, text in PLANS.items()
}


class Small(nn.Module):
    """A linear layer and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.drop(self.linear(x)).pow(2).sum()
        return result


def small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return stretto.compile(Small(), plan="mesh (dp=2)"), torch.randn(8, 4)


def test_the_same_seed_again_repeats_the_masks_of_every_model_as_in_eager_mode() -> None:
    (model, x), (other, _) = small(), small()
    torch.manual_seed(5)
    first = [model(x), model(x), other(x)]
    other(x)
    torch.manual_seed(5)
    assert [each.item() for each in (model(x), model(x), other(x))] == [each.item() for each in first]
    assert first[0].item() != first[1].item()


def test_a_state_that_is_set_behind_a_seed_stays_set() -> None:
    model, x = small()
    model(x)
    state, expected = random_state(model), model(x)
    torch.manual_seed(0)
    set_random_state(model, state)
    assert model(x).item() == expected.item()


def test_a_forward_that_draws_takes_one_number_of_torchs_generator_and_another_none() -> None:
    model, x = small()
    model(x)
    torch.manual_seed(3)
    model(x)
    taken = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3)[1:], taken)
    model.eval()
    with torch.no_grad():
        model(x)
    state = torch.get_rng_state()
    with torch.no_grad():
        model(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_training_with_dropout_gives_the_same_losses_under_every_plan() -> None:
    torch.manual_seed(0)
    model = Dropping().double()
    losses = {}
    for name, plan in {**ADAPTED, "dp": "mesh (dp=1)"}.items():
        torch.manual_seed(7)
        losses[name] = train(stretto.compile(copy.deepcopy(model), plan=plan), 2)
    assert losses["tp"] == pytest.approx(losses["dp"], rel=1e-12, abs=0)
    assert losses["dp_tp_sequence"] == pytest.approx(losses["dp"], rel=1e-12, abs=0)
    torch.manual_seed(8)
    assert train(stretto.compile(copy.deepcopy(model), plan="mesh (dp=1)"), 1)[0] != losses["dp"][0]


def test_without_dropout_a_model_is_as_in_eager_mode() -> None:
    torch.manual_seed(0)
    model = Dropping(p=0.0).double()
    compiled = stretto.compile(copy.deepcopy(model), plan=ADAPTED["dp_tp_sequence"])
    assert train(compiled, 2) == pytest.approx(train(model, 2), rel=1e-12, abs=0)
    assert random_state(compiled).step == 0


def test_every_forward_draws_new_masks_and_two_may_wait_for_their_backwards() -> None:
    model, x = small()
    first, second = model(x), model(x)
    assert first.item() != second.item() and random_state(model).step == 2
    alone = []
    for step in range(2):
        set_random_state(model, replace(random_state(model), step=step))
        model.zero_grad()
        loss = model(x)
        loss.backward()
        alone.append((loss.item(), model.linear.weight.grad.clone()))
    assert [first.item(), second.item()] == [loss for loss, _ in alone]
    model.zero_grad()
    (second - first).backward()
    torch.testing.assert_close(model.linear.weight.grad, alone[1][1] - alone[0][1])


def test_a_forward_that_draws_nothing_takes_no_step() -> None:
    model, x = small()
    model.eval()
    with torch.no_grad():
        assert model(x).item() == model(x).item()
    assert random_state(model) == RngState(seed=0, step=0)


def test_a_dropout_under_no_grad_draws_new_masks_too() -> None:
    model, x = small()
    with torch.no_grad():
        assert model(x).item() != model(x).item()
    assert random_state(model).step == 2


def test_programs_for_other_shapes_share_the_steps() -> None:
    model, x = small()
    model(x)
    model(x[:4])
    assert random_state(model) == RngState(seed=0, step=2)


def test_a_seed_begins_at_step_0() -> None:
    model, x = small()
    first = model(x).item()
    assert random_state(model).step == 1
    torch.manual_seed(0)
    assert random_state(model).step == 0 and model(x).item() == first
    torch.manual_seed(1)
    assert random_state(model) == RngState(seed=1, step=0)
    other = model(x).item()
    torch.manual_seed(0)
    assert other != first == model(x).item()


def test_a_state_that_is_set_continues_where_it_was_taken_whatever_torchs_seed() -> None:
    model, x = small()
    model(x)
    kept = random_state(model)
    expected = [model(x).item(), model(x).item()]
    torch.manual_seed(99)
    again = stretto.compile(copy.deepcopy(model), plan="mesh (dp=4)")
    set_random_state(again, kept)
    assert [again(x).item(), again(x).item()] == pytest.approx(expected, rel=1e-6)
    torch.manual_seed(5)
    assert random_state(again) == RngState(seed=5, step=0)
