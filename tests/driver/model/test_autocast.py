"""`torch.autocast` around a compiled model and in its forward, as eager torch has it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import stretto
import torch

from ..precision_models import PLANS, build, gradients, largest_error

BF16 = torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
@pytest.mark.parametrize(("plan", "roundings"), [("one", 0.5), ("dp_tp", 2)])
def test_a_step_under_autocast_is_eager_torchs_to_rounding(plan: str, roundings: float, inside: bool) -> None:
    plain, ids = build(torch.bfloat16 if inside else None)
    model = stretto.compile(deepcopy(plain), plan=PLANS[plan])
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        loss, expected = model(ids), plain(ids)
    loss.backward()
    expected.backward()
    assert loss.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=roundings * BF16, atol=0)
    assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}
    assert largest_error(gradients(model), gradients(plain)) <= roundings * BF16


def test_autocast_switched_on_and_off_runs_programs_of_its_own() -> None:
    plain, ids = build()
    model = stretto.compile(deepcopy(plain), plan=PLANS["dp"])
    with torch.no_grad():
        exact = plain(ids)
        off = model(ids)
        with torch.autocast("cpu", torch.bfloat16):
            on = model(ids)
        again = model(ids)
    torch.testing.assert_close(off, exact, rtol=1e-6, atol=0)
    assert torch.equal(again, off) and not torch.equal(on, off)
    torch.testing.assert_close(on, exact, rtol=4 * BF16, atol=0)
