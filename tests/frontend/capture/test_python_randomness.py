"""Random numbers that a forward draws in Python are warned of at their line: a compiled model would repeat them."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable
from random import random as imported_by_name
from typing import Any

import numpy
import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import CaptureError, Mode
from torch import Tensor, nn


class Net(nn.Module):
    """A linear layer, a generator of its own, and a forward that is given."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.generator = numpy.random.default_rng(0)
        self.draw = random.Random(0).random
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x).sum()


def _dropped_layer(model: Net, x: Tensor) -> Tensor:
    hidden: Tensor = model.linear(x)
    return hidden if random.random() < 0.5 else x * hidden


PLACED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "layer drop": _dropped_layer,
    "a choice": lambda model, x: model.linear(x) * random.choice([1, 2]),
    "numpy": lambda model, x: model.linear(x) * numpy.random.rand(),
    "a generator without a seed": lambda model, x: model.linear(x) * numpy.random.default_rng().random(),
    "a permutation": lambda model, x: model.linear(x)[:, numpy.random.permutation(4)],
}
UNPLACED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "imported by name": lambda model, x: model.linear(x) * imported_by_name(),
    "a generator of numpy": lambda model, x: model.linear(x) * model.generator.random(),
    "a method of a generator": lambda model, x: model.linear(x) * model.draw(),
}


def warned(body: Callable[[Any, Tensor], Tensor]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        capture(Net(body), (torch.ones(2, 4),), {}, mode=Mode.TRAIN)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", PLACED)
def test_a_draw_in_python_is_warned_of_at_its_line(name: str) -> None:
    [message] = warned(PLACED[name])
    lines, start = inspect.getsourcelines(PLACED[name])
    place, _, rest = message.partition(": ")
    assert "draws random numbers in Python" in rest and "torch.rand" in rest
    file, _, line = place.rpartition(":")
    assert file == __file__ and start <= int(line) < start + max(len(lines), 1)


@pytest.mark.parametrize("name", UNPLACED)
def test_a_generator_that_has_drawn_is_warned_of_at_the_forward(name: str) -> None:
    [message] = warned(UNPLACED[name])
    assert message.startswith(f"{__file__}:{inspect.getsourcelines(Net.forward)[1]}: ")


def test_functions_of_python_stay_as_they_were_and_no_draw_is_no_warning() -> None:
    before = random.random, numpy.random.rand
    assert warned(lambda model, x: model.linear(x) * torch.rand(4)) == []
    with pytest.raises(CaptureError):
        capture(Net(lambda model, x: model.linear(x) / random.choice([])), (torch.ones(2, 4),), {}, mode=Mode.TRAIN)
    assert before == (random.random, numpy.random.rand)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (lambda model, x: model.linear(x) if torch.rand(()).item() < 0.5 else x, "E0220"),
        (lambda model, x: model.linear(x) * torch.rand(()).item(), "E0220"),
        (lambda model, x: model.linear(x) * torch.empty(4).random_(0, 5), "E0217"),
    ],
)
def test_a_draw_of_torch_that_is_read_into_python_is_refused(body: Callable[[Any, Tensor], Tensor], code: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Net(body), (torch.ones(2, 4),), {}, mode=Mode.TRAIN)
    assert caught.value.code == code and caught.value.span is not None and caught.value.span.file == __file__
