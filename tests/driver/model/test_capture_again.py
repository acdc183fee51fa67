"""When a compiled model is captured again, and the errors when it cannot be."""

from __future__ import annotations

import copy
import logging
import re
from typing import Any

import pytest
import stretto
import torch
from torch import Tensor, nn

from ..models import DP, Small


@stretto.compile(plan=DP)
class Structured(nn.Module):
    """Takes and returns nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: dict[str, Tensor] | list[Tensor] | Tensor, twice: bool = False) -> dict[str, Any]:
        parts = [x] if isinstance(x, Tensor) else list(x.values()) if isinstance(x, dict) else x
        y = sum(self.linear(part) for part in parts)
        return {"y": y, "nested": (y * 2 if twice else y + 1, "label", None)}


def program(model: nn.Module, *args: Any, **kwargs: Any) -> str:
    """The hash of the program that a call runs."""
    model(*args, **kwargs)
    return stretto.program_of(model).hash


def test_a_call_like_an_earlier_one_runs_its_program() -> None:
    model, x = Small(), torch.randn(4, 4)
    model(x)
    first = stretto.program_of(model)
    model(torch.randn(4, 4))
    assert stretto.program_of(model) is first
    with torch.no_grad():
        model(x)
    assert stretto.program_of(model) is not first
    model(x)
    assert stretto.program_of(model) is first


def test_each_thing_that_a_graph_depends_on_makes_another_program(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Small(), torch.randn(4, 4)
    with caplog.at_level(logging.INFO, "stretto"):
        programs = [program(model, x)]
        programs.append(program(model, x, scale=2.0))
        programs.append(program(model, torch.randn(8, 4), scale=2.0))
        model.linear.bias.requires_grad_(False)
        programs.append(program(model, torch.randn(8, 4), scale=2.0))
        programs.append(program(model.eval(), torch.randn(8, 4), scale=2.0))
        with torch.no_grad():
            programs.append(program(model, torch.randn(8, 4), scale=2.0))
        programs.append(program(model.double(), torch.randn(8, 4).double(), scale=2.0))
    assert len(set(programs)) == len(programs)
    why = [re.split(" s: |; ", record.getMessage())[1] for record in caplog.records]
    assert why == [
        "first call",
        "structure changed",
        "inputs changed",
        "trainable changed",
        "training changed",
        "mode, trainable changed",
        "mode, inputs, parameters, buffers, trainable changed",
    ]


def test_one_module_in_eval_mode_counts() -> None:
    model, x = Small(), torch.randn(4, 4)
    first = program(model, x)
    model.norm.eval()
    assert program(model, x) != first
    assert model.training and not model.norm.training


def test_a_model_that_is_changed_is_captured_again() -> None:
    class Pair(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x)).pow(2).sum()

    torch.manual_seed(0)
    model = Pair(nn.Linear(4, 4), nn.Linear(4, 4))
    compiled, x = stretto.compile(model, plan=DP), torch.randn(4, 4)

    def check(parameters: int) -> None:
        actual, expected = compiled(x), model(x)
        assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
        assert len(stretto.program_of(compiled).of_kind("parameter")) == parameters
        gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (actual, expected)]
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))

    check(4)
    model[1].weight = model[0].weight
    check(3)
    model[1].weight = nn.Parameter(torch.randn(4, 4))
    check(4)
    model.append(nn.Linear(4, 4))
    check(6)
    model[2] = nn.Tanh()
    check(4)
    hook = model[0].register_forward_hook(lambda module, args, result: result * 2)
    check(4)
    hook.remove()
    check(4)


def test_results_keep_their_structure() -> None:
    model = Structured()
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    for args, kwargs in [((a,), {}), (({"a": a, "b": b},), {}), (([a, b],), {"twice": True})]:
        actual, expected = model(*args, **kwargs), model.forward(*args, **kwargs)
        assert torch.allclose(actual["y"], expected["y"])
        assert torch.allclose(actual["nested"][0], expected["nested"][0])
        assert actual["nested"][1:] == ("label", None)


def test_a_result_without_a_gradient_is_no_error() -> None:
    class Choice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(-1)

    model = Choice(4, 4)
    x = torch.randn(4, 4)
    assert torch.equal(stretto.compile(model, plan=DP)(x), model(x))


def test_a_batch_that_does_not_divide_is_refused_with_its_size() -> None:
    model = Small()
    model(torch.randn(4, 4))
    with pytest.raises(stretto.StrettoError, match=r'E0401.*"x" has 3 rows'):
        model(torch.randn(3, 4))
    model(torch.randn(2, 4))


def test_a_forward_that_branches_on_data_is_refused_at_its_line() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(stretto.StrettoError, match=r"test_capture_again\.py:\d+.*E0220"):
        stretto.compile(Branching(4, 4), plan=DP)(torch.randn(4, 4))


def test_programs_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto.driver.model.program_cache.MAX_VARIANTS", 2)
    model = Small().eval()
    first = program(model, torch.randn(2, 4))
    for rows in (4, 6):
        program(model, torch.randn(rows, 4))
    assert program(model, torch.randn(2, 4)) == first


class Settings(nn.Module):
    """Reads numbers, a string, a list, a function and what may not be there; its children read more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.0)
        self.scale, self.kind, self.weights, self.act = 2.0, "sum", [1.0, 2.0], torch.tanh
        self.epoch = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.drop(self.norm(self.linear(x)))) * self.scale + self.weights[-1]
        if self.kind == "mean":
            y = y * self.factor
        return y.sum() + getattr(self, "extra", 0)


def test_attributes_that_a_forward_reads_make_another_program_and_going_back_finds_the_old_one() -> None:
    torch.manual_seed(0)
    model = Settings().double()
    compiled, x = stretto.compile(model, plan=DP), torch.randn(4, 4, dtype=torch.float64)
    first = program(compiled, x)

    def follows() -> str:
        plain = copy.deepcopy(model)
        assert compiled(x).item() == pytest.approx(plain(x).item(), rel=1e-12)
        assert torch.allclose(model.norm.running_mean, plain.norm.running_mean, rtol=1e-12)
        return stretto.program_of(compiled).hash

    changes = [
        ("scale", 3.0),
        ("scale", 3),
        ("act", torch.sin),
        ("weights", [1.0, 5.0]),
        ("extra", 7.0),
        ("norm.momentum", 0.5),
        ("norm.eps", 0.5),
    ]
    programs = {first}
    for path, value in changes:
        owner, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        before = vars(owner).get(name)
        setattr(owner, name, value)
        programs.add(follows())
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
        assert follows() == first
    assert len(programs) == 1 + len(changes)
    model.weights.append(9.0)
    assert follows() not in programs
    model.kind, model.factor = "mean", 4.0
    programs.add(follows())
    model.factor = 5.0
    assert follows() not in programs


def test_attributes_that_a_forward_does_not_read_make_no_program() -> None:
    model = Settings()
    compiled, x = stretto.compile(model, plan=DP), torch.randn(4, 4)
    compiled(x)
    first = stretto.program_of(compiled)
    model.epoch, model.factor, model.name = 1, 2.0, "another"
    compiled(x)
    assert stretto.program_of(compiled) is first


def test_a_module_of_another_class_is_captured_again() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    compiled, x = stretto.compile(model, plan=DP), torch.randn(4, 4)
    compiled(x)
    model[1] = nn.ReLU()
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    model.forward = lambda x: x + 1
    assert torch.equal(compiled(x), x + 1)
