"""The eager model of a check sees what capture forgot."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.check.eager_model import EagerModel
from stretto.driver.check.users_call import UsersCall
from stretto.runtime.philox import RngState
from torch import Tensor, nn


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return 2 * x


CALL = UsersCall({"x": torch.ones(2)}, loss_only=False)


def eager(captured: set[str]) -> EagerModel:
    """The model, of which the capture says that it changes some buffers."""
    model = Counting()
    return EagerModel(
        model,
        CALL,
        {0: "x"},
        {},
        captured,
        raised=False,
        state_of=lambda step: RngState(0, step),
    )


def test_a_buffer_that_the_capture_changes_too_is_compared() -> None:
    model = eager({"calls"})
    model.forward({0: torch.ones(2)})
    assert float(model.changed["calls"]) == 1


def test_a_buffer_that_the_capture_does_not_change_is_refused() -> None:
    with pytest.raises(StrettoError, match=r'E0665.*"calls"'):
        eager(set()).forward({0: torch.ones(2)})


class Held:
    """An object among the arguments."""

    def __init__(self) -> None:
        self.parts = [{"rows": torch.zeros(2)}, {"rows": torch.zeros(2)}]


def test_tensors_of_an_object_among_the_arguments_get_values_and_are_compared() -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor, held: Held) -> Tensor:
            held.parts[1]["rows"].add_(x)
            return held.parts[1]["rows"] + held.parts[0]["rows"]

    call = UsersCall({"x": torch.ones(2), "held": Held()}, loss_only=False)
    names = [f"held.parts.{index}.rows" for index in range(2)]
    values = {("buffer", name): torch.full((2,), 3.0) for name in names}
    model = EagerModel(
        Writing(), call, {0: "x"}, values, {names[1]}, raised=True, state_of=lambda step: RngState(0, step)
    )
    [result] = model.forward({0: torch.ones(2, dtype=torch.float64)})
    assert result.tolist() == [7.0, 7.0] and result.dtype is torch.float64
    assert model.changed[names[1]].tolist() == [4.0, 4.0]
    unseen = EagerModel(Writing(), call, {0: "x"}, values, set(), raised=True, state_of=lambda step: RngState(0, step))
    with pytest.raises(StrettoError, match=r"E0665.*held\.parts\.1\.rows"):
        unseen.forward({0: torch.ones(2, dtype=torch.float64)})


def test_what_a_forward_draws_in_python_is_the_same_in_every_run() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random() + float(np.random.rand())

    def results(forwards: int) -> list[float]:
        each = EagerModel(Drawing(), CALL, {0: "x"}, {}, set(), raised=False, state_of=lambda step: RngState(0, step))
        return [float(each.forward({0: torch.ones(2)})[0][0]) for _ in range(forwards)]

    before = random.getstate()
    first = results(3)
    assert results(3) == first and len({*first}) == 3
    assert random.getstate() == before


def test_a_buffer_that_gets_another_shape_is_a_change() -> None:
    class Growing(Counting):
        def forward(self, x: Tensor) -> Tensor:
            self.calls = torch.zeros(2)
            return x

    eager_model = EagerModel(
        Growing(), CALL, {0: "x"}, {}, set(), raised=False, state_of=lambda step: RngState(0, step)
    )
    with pytest.raises(StrettoError, match=r'E0665.*"calls"'):
        eager_model.forward({0: torch.ones(2)})


def test_a_gradient_that_eager_gives_an_input_and_the_program_does_not_is_found() -> None:
    x, y = (torch.ones(2, requires_grad=True) for _ in range(2))

    class Product(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x * y).sum() + (0 * x).sum()

    def findings(of_program: Tensor) -> list[str]:
        call = UsersCall({"x": x, "y": y}, loss_only=False)
        model = EagerModel(
            Product(), call, {0: "x", 1: "y"}, {}, set(), raised=False, state_of=lambda step: RngState(0, step)
        )
        model.forward({0: x.detach().requires_grad_(), 1: of_program})[0].backward()
        return [f"{row.kind} {row.name}" for row in model.findings()]

    assert findings(torch.ones(2)) == ["gradient y"]
    assert findings(torch.ones(2, requires_grad=True)) == []
