"""A check calls a program for inference as a script does, so that faults of `load_program` show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.dsl.plan import Plan
from stretto.frontend.capture.call import bind_call
from stretto.frontend.captured import Mode
from stretto.runtime import loaded_program
from stretto.runtime.checks.program_check import check
from stretto.runtime.philox import RngState
from stretto.runtime.program.program import Program
from torch import Tensor, nn
from torch.nn import functional as F

from ...subsets import only


class Counting(nn.Module):
    """Draws random numbers, and counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(self.linear(x) - y, 0.5, training=True) * self.calls


@cache
def program() -> Program:
    torch.manual_seed(0)
    model = Counting().eval()
    inputs = {"x": torch.randn(4, 4), "y": torch.randn(4, 4)}
    options = Options(mode=Mode.INFER)
    return compile_program(
        CompileRequest(model, bind_call(model, (), inputs), Plan.parse("mesh (dp=2)\n"), options)
    ).program


def in_the_callers_order(entry: str, program: Program, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    return [*inputs.values()]


def never_advanced(state: RngState, **changes: int) -> RngState:
    return state


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "inputs in the caller's order": lambda patch: patch.setattr(loaded_program, "_in_order", in_the_callers_order),
    "the same random numbers in each call": lambda patch: patch.setattr(loaded_program, "replace", never_advanced),
}


def test_a_right_program_passes() -> None:
    assert check(program()).passed


@pytest.mark.parametrize("fault", only([*FAULTS][:1], FAULTS))
def test_a_fault_of_a_loaded_program_differs(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    FAULTS[fault](monkeypatch)
    assert not check(program()).passed
