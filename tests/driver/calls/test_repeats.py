"""Equal calls that give other bits, or leave tensors behind, have rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.calls.repeats import rows_of_repeats
from stretto.runtime.checks.report import MEMORY, REPEATED
from stretto.runtime.threads import session
from torch import Tensor, nn

KEPT: list[Tensor] = []


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.norm(self.up(x)), 0.2, self.training).square().mean()


def rows(monkeypatch: pytest.MonkeyPatch, wrong: str) -> list[tuple[str, str]]:
    torch.manual_seed(0)
    model = Net()
    compiled = stretto.compile(copy.deepcopy(model), plan="mesh (dp=2)")
    arguments = {"x": torch.randn(8, 6)}
    compiled(**arguments).backward()
    run = session.RankThreads.forward
    calls = 0

    def other(self: session.RankThreads, *values: Any, **how: Any) -> object:
        nonlocal calls
        calls += 1
        result = run(self, *values, **how)
        if wrong == "bits":
            result[0][0].mul_(1 + calls * 1e-6)
        if wrong == "tensors":
            KEPT.append(torch.zeros(1))
        return result

    monkeypatch.setattr(session.RankThreads, "forward", other)
    return [(row.kind, row.name) for row in rows_of_repeats(compiled, model, arguments, trains=True)]


CASES = [("", []), ("bits", [(REPEATED, "output 0")]), ("tensors", [(MEMORY, "the runtime")])]


@pytest.mark.parametrize(("wrong", "expected"), CASES)
def test_a_call_that_is_repeated(monkeypatch: pytest.MonkeyPatch, wrong: str, expected: list[tuple[str, str]]) -> None:
    assert rows(monkeypatch, wrong) == expected
    KEPT.clear()
