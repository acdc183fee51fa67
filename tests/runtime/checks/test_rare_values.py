"""Checks see memory that nobody wrote, experts without rows, and gradients that are None on one side."""

from __future__ import annotations

import pytest
import torch
from stretto.frontend.captured import Mode
from stretto.runtime.checks.judging import WithinTolerance
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.recording import Recording
from stretto.runtime.checks.regimes import Regime
from stretto.runtime.threads import session
from torch import Tensor, nn

from ...end_to_end.checking import compiled_model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).square().mean()


def test_memory_that_nobody_wrote_differs_in_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled_model(Net(), {"x": torch.randn(4, 6)}, "mesh (dp=2)", Mode.TRAIN).program
    assert check(program, steps=1).passed and not torch.are_deterministic_algorithms_enabled()

    def unwritten(tensor: Tensor, *_unused: object) -> Tensor:
        part = right(tensor, *_unused)
        return torch.where(part > 1e9, part, part.new_empty(part.shape)) if part.is_floating_point() else part

    right = session.local_tensor
    monkeypatch.setattr(session, "local_tensor", unwritten)
    rows = check(program, steps=1).rows
    assert any("values that are not finite" in row.note for row in rows)


def test_with_equal_rows_the_largest_logit_is_that_of_one_expert() -> None:
    router, x = torch.randn(4, 6), torch.randn(8, 6)
    values = Regime.EQUAL_ROWS.values({("parameter", "router"): router, ("parameter", "bias"): x[0]})
    logits = Regime.EQUAL_ROWS.input(x) @ values["parameter", "router"].T
    assert len(logits.topk(1).indices.unique()) == 1
    assert values["parameter", "bias"] is x[0] or torch.equal(values["parameter", "bias"], x[0])


def test_a_gradient_of_zeros_beside_none_differs() -> None:
    zeros = Recording(gradients={"w": torch.zeros(3)})
    for reference, program in ((zeros, Recording()), (Recording(), zeros)):
        found = WithinTolerance(reference, "float32", 1e-4, 1, {}).rows(program)
        assert [row.name for row in found if row.differs] == ["w (is there)"]
