"""Where a program awaits communication is compared with what the text of its plan says."""

from __future__ import annotations

from functools import cache

import torch
from stretto.driver.readings.overlap_rows import overlap_facts
from stretto.driver.readings.plan_text import PlanText
from stretto.frontend.captured import Mode
from stretto.runtime.program.program import Program
from torch import Tensor, nn

from ...end_to_end.checking import compiled_model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x))).square().mean()


@cache
def _program(overlap: str) -> Program:
    plan = f"mesh (dp=2)\nzero 3 over dp\n{overlap}"
    return compiled_model(Net(), {"x": torch.randn(4, 8)}, plan, Mode.TRAIN, loss_only=True).program


def _wrong(compiled_with: str, text: str) -> list[str]:
    facts = overlap_facts(_program(compiled_with), PlanText.of(f"mesh (dp=2)\n{text}"))
    return [f"{name}: {found}" for name, found, expected in facts if found != expected]


def test_a_program_that_moves_what_its_plan_leaves_in_place_differs() -> None:
    level_0, hidden = "overlap { level 0 }", "overlap { hide all_gather  memory +1000% }"
    level_1 = "overlap { memory +1000% }"
    assert _wrong(level_0, level_0) == _wrong(hidden, hidden) == _wrong(level_1, level_1) == []
    assert _wrong(level_1, level_0) == [f"overlap {each}: it beside other work" for each in _kinds()]
    assert _wrong(level_1, hidden) == ["overlap reduce_scatter: it beside other work"]
    assert _wrong(hidden, level_0) == ["overlap all_gather: it beside other work"]


def _kinds() -> list[str]:
    return ["all_gather", "reduce_scatter"]


def test_a_program_whose_collectives_are_on_other_lanes_than_the_plan_says_differs() -> None:
    lanes = "overlap { lanes compute, dp }"
    assert _wrong(lanes, lanes) == []
    assert set(_wrong("", lanes)) == {
        "overlap all_gather: it on comm",
        "overlap all_reduce: it on comm",
        "overlap reduce_scatter: it on comm",
    }
    assert set(_wrong(lanes, "")) == {
        "overlap all_gather: it on dp",
        "overlap all_reduce: it on dp",
        "overlap reduce_scatter: it on dp",
    }
