"""Gradient accumulation: unreduced gradients under `no_sync`, their reduction at the next step, and refused steps."""

from __future__ import annotations

import math

import pytest
import stretto
import torch
from stretto.runtime.program.program import Program

from ...subsets import only
from ..models import DP, PLANS, TP, batch, twins
from .test_training import assert_same_gradients


@pytest.mark.parametrize("plan", only(["dp", "dp_tp_sequence"], PLANS))
def test_gradients_wait_in_no_sync_and_arrive_with_the_next_backward(plan: str) -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=PLANS[plan])
    for step in range(2):  # the second time with programs that are there, and gradients to add to
        with compiled.no_sync():
            for index in range(2):
                compiled(*batch(3 * step + index)).backward()
        waiting = {
            gradient.name
            for gradient in stretto.program_of(compiled).results_of_kind("gradient")
            if gradient.unreduced_over
        }
        before = {name: parameter.grad for name, parameter in plain.named_parameters()}
        for name, parameter in model.named_parameters():
            if name in waiting:
                assert (parameter.grad is None) == (before[name] is None), name
                if parameter.grad is not None:
                    assert torch.allclose(parameter.grad, before[name], rtol=0, atol=1e-10), name
        compiled(*batch(3 * step + 2)).backward()
        for index in range(3):
            plain(*batch(3 * step + index)).backward()
        assert_same_gradients(model, plain)


def test_a_delayed_program_has_no_reduction_of_gradients_over_the_replicas() -> None:
    model, _ = twins(torch.float64)
    compiled = stretto.compile(model, plan=DP)
    compiled(*batch()).backward()
    usual = len(_collectives(stretto.program_of(compiled)))
    with compiled.no_sync():
        compiled(*batch()).backward()
    program = stretto.program_of(compiled)
    assert all(gradient.unreduced_over == ("dp",) for gradient in program.results_of_kind("gradient"))
    assert len(_collectives(program)) < usual


def test_a_step_while_gradients_wait_is_refused() -> None:
    model, _ = twins()
    compiled = stretto.compile(model, plan=PLANS["dp"])
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    with compiled.no_sync():
        compiled(*batch()).backward()
    with pytest.raises(stretto.StrettoError, match="before the gradients are reduced") as caught:
        optimizer.step()
    assert caught.value.code == "E0605"
    compiled(*batch()).backward()
    optimizer.step()


def test_what_a_backward_cannot_deliver_waits_on() -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=PLANS["dp"])
    with compiled.no_sync():
        compiled(*batch(0)).backward()
    plain(*batch(0)).backward()
    for module in (compiled, plain):
        module.get_submodule("blocks.0").requires_grad_(False)
        module(*batch(1)).backward()
        module.get_submodule("blocks.0").requires_grad_(True)
        module(*batch(2)).backward()
    assert_same_gradients(model, plain)


def test_the_models_zero_grad_forgets_what_waits() -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=PLANS["dp"])
    with compiled.no_sync():
        (compiled(*batch(0)) * 1e6).backward()
    compiled.zero_grad()
    for module in (compiled, plain):
        module(*batch(1)).backward()
    assert_same_gradients(model, plain)


@pytest.mark.slow
def test_inside_no_sync_gradients_that_wait_are_no_results_of_grad() -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=PLANS["dp"])
    weight = model.head.weight
    with compiled.no_sync():
        assert torch.autograd.grad(compiled(*batch(0)), [weight], allow_unused=True) == (None,)
    compiled.zero_grad()
    [gradient] = torch.autograd.grad(compiled(*batch(0)), [weight])
    [expected] = torch.autograd.grad(plain(*batch(0)), [plain.head.weight])
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12)


def test_a_forward_without_gradients_leaves_what_waits_alone() -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=PLANS["dp"])
    with compiled.no_sync():
        compiled(*batch(0)).backward()
    with torch.no_grad():
        compiled(*batch(5))
    compiled(*batch(1)).backward()
    for step in range(2):
        plain(*batch(step)).backward()
    assert_same_gradients(model, plain)


@pytest.mark.parametrize("what", ["parameter", "input"])
def test_a_backward_after_a_change_of_what_its_forward_used_is_refused(what: str) -> None:
    model, _ = twins()
    compiled = stretto.compile(model, plan=TP)
    tokens, targets = batch()
    loss = compiled(tokens, targets)
    with torch.no_grad():
        (tokens if what == "input" else next(model.parameters())).zero_()
    with pytest.raises(
        stretto.StrettoError, match=f"{what} '.*' was changed between this forward and its backward"
    ) as c:
        loss.backward()
    assert c.value.code == "E0335"


def test_a_second_backward_of_one_forward_is_refused() -> None:
    model, _ = twins()
    loss = stretto.compile(model, plan=TP)(*batch())
    loss.backward(retain_graph=True)
    with pytest.raises(stretto.StrettoError, match="backward was already run for this forward") as caught:
        loss.backward()
    assert caught.value.code == "E0332"


def test_a_model_with_a_no_sync_of_its_own_keeps_it() -> None:
    class Own(torch.nn.Linear):
        def no_sync(self) -> str:
            return "own"

    assert stretto.compile(Own(2, 2), plan=DP).no_sync() == "own"


@pytest.mark.parametrize("norm_type", only([1.0, 2.0], [1.0, 2.0, 3.0, math.inf]))
def test_clipping_gives_the_norm_and_the_gradients_of_torch(norm_type: float) -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=TP)
    for module in (compiled, plain):
        module(*batch()).backward()
    norm = stretto.clip_grad_norm_(compiled, 0.01, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01, norm_type)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(model, plain)


def test_clipping_is_refused_while_gradients_wait_and_where_they_are_not_finite() -> None:
    model, _ = twins()
    compiled = stretto.compile(model, plan=DP)
    assert stretto.clip_grad_norm_(compiled, 1.0).item() == 0.0
    with compiled.no_sync():
        compiled(*batch()).backward()
    with pytest.raises(stretto.StrettoError, match="before the gradients are reduced") as caught:
        stretto.clip_grad_norm_(compiled, 1.0)
    assert caught.value.code == "E0605"
    compiled(*batch()).backward()
    next(gradient for parameter in model.parameters() if (gradient := parameter.grad) is not None).fill_(math.inf)
    with pytest.raises(stretto.StrettoError, match=r"is (inf|nan)") as caught:
        stretto.clip_grad_norm_(compiled, 1.0, error_if_nonfinite=True)
    assert caught.value.code == "E0606"


def _collectives(program: Program) -> list[str]:
    return [
        instruction.op
        for instruction in program.functions["main"].code
        if instruction.op.startswith("comm.") and "wait" not in instruction.op
    ]
