"""A program inside the caller's own autograd graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from stretto.runtime import RankThreads, RunError
from stretto.runtime.rank.autograd import run

from ..tiny_programs import linear


@pytest.fixture
def session() -> Iterator[RankThreads]:
    with RankThreads(linear()) as ranks:
        yield ranks


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(4, 3))


def expected(w: torch.Tensor, *batches: torch.Tensor) -> torch.Tensor:
    copy = w.detach().clone().requires_grad_()
    torch.stack([(x @ copy).square().sum() for x in batches]).sum().backward()
    assert copy.grad is not None
    return copy.grad


def test_backward_gives_parameters_their_gradients(session: RankThreads) -> None:
    w, x = parameter(), torch.randn(5, 4)
    (loss, _), _ = run(session, [w], [], [x])
    (3 * loss).backward()
    torch.testing.assert_close(w.grad, 3 * expected(w, x))


def test_gradients_accumulate_and_forwards_may_precede_backwards(session: RankThreads) -> None:
    w, one, two = parameter(), torch.randn(5, 4), torch.randn(5, 4)
    (first, _), _ = run(session, [w], [], [one])
    (second, _), _ = run(session, [w], [], [two])
    first.backward()
    second.backward()
    torch.testing.assert_close(w.grad, expected(w, one, two))


def test_losses_may_be_added_before_backward(session: RankThreads) -> None:
    w, one, two = parameter(), torch.randn(5, 4), torch.randn(5, 4)
    (run(session, [w], [], [one])[0][0] + run(session, [w], [], [two])[0][0]).backward()
    torch.testing.assert_close(w.grad, expected(w, one, two))


def test_a_gradient_belongs_to_its_parameter_alone(session: RankThreads) -> None:
    w, x = parameter(), torch.randn(5, 4)
    run(session, [w], [], [x])[0][0].backward()
    assert w.grad is not None
    w.grad.zero_()
    run(session, [w], [], [x])[0][0].backward()
    torch.testing.assert_close(w.grad, expected(w, x))


def test_an_optimizer_trains_it_as_it_trains_the_model(session: RankThreads) -> None:
    w, x = parameter(), torch.randn(5, 4)
    copy = torch.nn.Parameter(w.detach().clone())
    ours, theirs = torch.optim.AdamW([w], lr=0.1), torch.optim.AdamW([copy], lr=0.1)
    for _ in range(5):
        run(session, [w], [], [x])[0][0].backward()
        (x @ copy).square().sum().backward()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(w, copy)


def test_without_grad_mode_or_trainable_parameters_nothing_is_recorded(session: RankThreads) -> None:
    w, x = parameter(), torch.randn(5, 4)
    with torch.no_grad():
        outputs, _ = run(session, [w], [], [x])
    assert not any(output.requires_grad for output in outputs)
    outputs, _ = run(session, [w.detach()], [], [x])
    assert not any(output.requires_grad for output in outputs)


def test_an_output_without_a_tangent_cannot_be_differentiated(session: RankThreads) -> None:
    (loss, y), _ = run(session, [parameter()], [], [torch.randn(5, 4)])
    with pytest.raises(RunError) as caught:
        (loss + y.sum()).backward()
    assert caught.value.code == "E0331"
    assert "output 1 (y)" in caught.value.message


def test_a_second_backward_is_refused(session: RankThreads) -> None:
    (loss, _), _ = run(session, [parameter()], [], [torch.randn(5, 4)])
    loss.backward(retain_graph=True)
    with pytest.raises(RunError) as caught:
        loss.backward()
    assert caught.value.code == "E0332"


def test_a_second_derivative_is_refused(session: RankThreads) -> None:
    w = parameter()
    (loss, _), _ = run(session, [w], [], [torch.randn(5, 4)])
    with pytest.raises(RunError) as caught:
        torch.autograd.grad(loss, [w], create_graph=True)
    assert caught.value.code == "E0334"
