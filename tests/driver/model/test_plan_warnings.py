"""A statement of the plan without effect is a warning."""

from __future__ import annotations

import pytest
import stretto
import torch
from torch import nn


def test_a_statement_without_effect_is_a_python_warning_that_shows_its_line() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    model = stretto.compile(model, plan='mesh (tp=2)\nshard "0" dim 0 over tp\nshard "0" columns over tp\n')
    with torch.no_grad(), pytest.warns(stretto.PlanWarning, match="this statement has no effect") as caught:
        model(torch.randn(2, 4))
    (warning,) = caught
    assert '    2 | shard "0" dim 0 over tp\n' in str(warning.message)


def test_a_plan_that_does_what_it_says_is_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = stretto.compile(nn.Linear(4, 8), plan='mesh (tp=2)\nshard "weight", "bias" dim 0 over tp\n')
    with torch.no_grad():
        model(torch.randn(2, 4))
    assert not [warning for warning in recwarn if issubclass(warning.category, stretto.PlanWarning)]
