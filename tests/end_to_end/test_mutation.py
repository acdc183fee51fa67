"""What a forward changes, keeps and returns, in a user's own loop: as in eager mode, or refused at the user's line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from torch import Tensor, nn

from ..subsets import only

BATCH, IN, OUT = 4, 6, 8
PLANS = {"dp": "mesh (dp=2)", "tp": 'mesh (tp=2)\nshard "lin" columns over tp'}
Forward = Callable[..., Any]
FORWARDS: dict[str, Forward] = {}
REFUSED: dict[str, Forward] = {}


class Model(nn.Module):
    """A layer, a vector, a counter and statistics; what it computes is given."""

    def __init__(self, run: Forward) -> None:
        super().__init__()
        self.run = run
        self.lin = nn.Linear(IN, OUT)
        self.norm = nn.BatchNorm1d(OUT)
        self.register_buffer("mean", torch.arange(float(OUT)))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("tail", self.mean[2:])
        self.double()

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def _works(run: Forward) -> Forward:
    FORWARDS[run.__name__] = run
    return run


def _is_refused(run: Forward) -> Forward:
    REFUSED[run.__name__] = run
    return run


@_works
def statistics_of_the_batch(m: Any, x: Tensor) -> Any:
    return m.norm(m.lin(x))


@_works
def the_input_itself(m: Any, x: Tensor) -> Any:
    return x, m.lin(x)


@_works
def parameters_and_views_of_them(m: Any, x: Tensor) -> Any:
    return m.lin.weight, m.lin.weight.t(), m.lin.bias[2:], m.lin(x)


@_works
def buffers_and_views_of_them(m: Any, x: Tensor) -> Any:
    return m.mean, m.mean[1:], m.steps, m.lin(x) + m.mean


@_works
def a_result_and_views_of_it(m: Any, x: Tensor) -> Any:
    y = m.lin(x)
    return y, y, y.view(-1), y[0]


@_works
def a_buffer_changed_twice(m: Any, x: Tensor) -> Any:
    m.steps += 1
    m.mean.mul_(0.5).add_(m.steps)
    y = m.lin(x) + m.mean
    m.mean.add_(y.detach().mean(0))
    return y, m.mean


@_works
def a_view_of_a_buffer_changed(m: Any, x: Tensor) -> Any:
    m.mean.view(2, 4)[0].add_(x.mean(0)[:4].detach())
    return m.lin(x) * m.mean


@_works
def a_buffer_replaced(m: Any, x: Tensor) -> Any:
    m.steps = m.steps + 1
    m.mean = 0.9 * m.mean + m.lin(x).detach().sum(0)
    return m.lin(x) * m.mean / m.steps


@_works
def a_buffer_replaced_whose_old_value_the_backward_needs(m: Any, x: Tensor) -> Any:
    y = m.lin(x) * m.mean
    m.mean = 0.9 * m.mean + y.detach().sum(0)
    return y * m.mean


@_works
def views_changed_in_place(m: Any, x: Tensor) -> Any:
    y = m.lin(x).clone()
    y[:, 1:3].mul_(2)
    y.t()[0].add_(1.0)
    y.view(-1)[3] = 0.0
    y[1] = y[0].detach()
    z = y + 0
    z.view(BATCH, 2, 4)[:, 0].exp_()
    return y, z, torch.empty_like(y).copy_(z)[:, ::3]


@_is_refused
def the_input_changed(m: Any, x: Tensor) -> Any:
    return m.lin(x.add_(1))


@_is_refused
def a_view_of_the_input_changed(m: Any, x: Tensor) -> Any:
    x[0].mul_(0)
    return m.lin(x)


@_is_refused
def a_parameter_changed(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        m.lin.weight.mul_(0.5)
    return m.lin(x)


@_is_refused
def a_parameter_s_data_changed(m: Any, x: Tensor) -> Any:
    m.lin.weight.data.mul_(0.5)
    return m.lin(x)


@_is_refused
def a_buffer_replaced_by_a_shorter_one(m: Any, x: Tensor) -> Any:
    m.mean = m.mean[1:]
    return m.lin(x)


@_is_refused
def a_buffer_with_another_s_memory_changed(m: Any, x: Tensor) -> Any:
    m.mean += 1
    return m.lin(x) * m.tail.sum()


def _model(run: Forward, *, shares: bool = False) -> Model:
    model = Model(run)
    if not shares:
        model.tail = model.tail.clone()
    else:
        model.tail = model.mean[2:]
    return model


def _leaves(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def _step(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs of one call, and gradients of all that have some."""
    outputs = _leaves(model(*inputs))
    wanted = [tensor for tensor in outputs if tensor.requires_grad]
    if wanted:
        torch.autograd.backward(sum((tensor.pow(2).sum() for tensor in wanted), torch.zeros(())))
    return outputs


def _assert_alike(model: nn.Module, plain: nn.Module, inputs: Callable[[], tuple[Tensor, ...]], plan: str) -> None:
    """Three calls each: equal outputs, gradients and buffers, and no output in memory of the model or the caller."""
    compiled = stretto.compile(model, plan=plan)
    for seed in range(3):
        torch.manual_seed(seed)
        mine, theirs = inputs(), ()
        torch.manual_seed(seed)
        theirs = inputs()
        actual, want = _step(compiled, mine), _step(plain, theirs)
        assert [value.requires_grad for value in actual] == [value.requires_grad for value in want]
        pairs = [*zip(actual, want, strict=True), *zip(mine, theirs, strict=True)]
        pairs += zip(model.buffers(), plain.buffers(), strict=True)
        pairs += [
            (p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True) if q.grad is not None
        ]
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        storages = {
            parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), *model.buffers(), *mine)
        }
        assert not storages & {value.untyped_storage().data_ptr() for value in actual}


def _rows() -> tuple[Tensor, ...]:
    return (torch.randn(BATCH, IN, dtype=torch.float64),)


@pytest.mark.parametrize(("train", "plan"), only([(True, "tp"), (False, "dp")], product([True, False], PLANS)))
@pytest.mark.parametrize("name", FORWARDS)
def test_what_a_forward_changes_and_returns_is_as_in_eager_mode(name: str, train: bool, plan: str) -> None:
    torch.manual_seed(0)
    model = _model(FORWARDS[name]).train(train)
    _assert_alike(model, copy.deepcopy(model), _rows, PLANS[plan])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_back_is_refused_at_the_user_s_line(name: str) -> None:
    model = _model(REFUSED[name], shares="memory" in name)
    with pytest.raises(StrettoError, match=r"test_mutation\.py:\d+:\d+: error\[E0216\]") as caught:
        stretto.compile(model, plan=PLANS["dp"])(*_rows())
    assert caught.value.help
    assert torch.equal(model.mean, torch.arange(float(OUT), dtype=torch.float64))


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    def run(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return m.lin(x) + y, z * 2, y

    def inputs() -> tuple[Tensor, ...]:
        x, y, z = torch.randn(IN, BATCH), torch.randn(1, OUT), torch.randn(BATCH, 2 * OUT)
        return x.double().t(), y.double().expand(BATCH, OUT), z.double()[:, ::2]

    model = _model(run)
    _assert_alike(model, copy.deepcopy(model), inputs, PLANS["dp"])


def test_a_number_that_a_forward_counts_in_and_a_tensor_that_it_keeps_are_warnings() -> None:
    def run(m: Any, x: Tensor) -> Any:
        m.calls += 1
        m.last = m.lin(x)
        return m.last * m.calls

    model = _model(run)
    model.calls = 0
    with pytest.warns(UserWarning) as caught:
        stretto.compile(model, plan=PLANS["dp"])(*_rows())
    assert ['"calls" (from 0 to 1)' in str(warning.message) for warning in caught] == [True, False]
    assert 'keeps a tensor in "last"' in str(caught[1].message)
    assert model.calls == 0 and not hasattr(model, "last")


def test_what_a_forward_puts_into_lists_and_attributes_is_a_warning_and_undone() -> None:
    def run(m: Any, x: Tensor) -> Any:
        y = m.lin(x)
        m.seen.append(y)
        m.stats["losses"]["last"] = y.sum()
        m.names.add("new")
        m.kind = "other"
        m.pair = (y, y)
        m.same = "as before"
        m.register_buffer("made", y)
        m.forget.remove(1)
        return y

    model = _model(run)
    model.seen, model.stats, model.names = [], {"losses": {}, "steps": 3}, {"old"}
    model.kind, model.same, model.forget = "one", "as before", [1, 2]
    with pytest.warns(UserWarning) as caught:
        result = stretto.compile(model, plan=PLANS["dp"])(*_rows())
    messages = [str(warning.message).partition(", which")[0] for warning in caught]
    assert sorted(messages) == [
        "forward changes the dict \"stats['losses']\"",
        'forward changes the list "forget"',
        'forward changes the list "seen"',
        'forward changes the set "names"',
        'forward keeps a tensor in "made"',
        'forward sets "kind"',
        'forward sets "pair"',
    ]
    assert (model.seen, model.stats, model.names) == ([], {"losses": {}, "steps": 3}, {"old"})
    assert (model.kind, model.forget, hasattr(model, "pair"), hasattr(model, "made")) == ("one", [1, 2], False, False)
    assert result.requires_grad


def test_a_forward_that_fails_leaves_the_model_as_it_was() -> None:
    def run(m: Any, x: Tensor) -> Any:
        m.mean = m.mean * 2
        m.last = m.lin(x)
        m.steps += 1
        raise ValueError("no more")

    model = _model(run)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(StrettoError, match=r"E0224.*no more"):
        stretto.compile(model, plan=PLANS["dp"])(*_rows())
    assert not hasattr(model, "last")
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
