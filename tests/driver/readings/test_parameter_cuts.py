"""The placements of a program's parameters are compared with the plan, without the code that resolves plans."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.driver.readings import parameter_cuts
from stretto.driver.readings.plan_rows import rows_of_plan
from stretto.dsl import globs, resolve, resolve_stored
from stretto.dsl.plan import Plan
from stretto.dsl.resolve import OwnerKind
from stretto.dsl.resolve_stored import Storage
from stretto.dsl.shard import Role
from stretto.dsl.zero import Zero
from stretto.frontend.capture import model_parameters
from stretto.frontend.capture.call import bind_call
from stretto.frontend.captured import Mode
from torch import Tensor, nn


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.layers = nn.ModuleList([nn.ModuleDict({"up": Conv1D(), "down": nn.Linear(8, 6)}) for _ in range(2)])
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer["down"](torch.tanh(layer["up"](x)))
        return self.head(x).logsumexp(-1).mean()


PLANS = (
    "mesh (dp=2)",
    'mesh (tp=2)\nshard "*.up" columns over tp\nshard "*.down" rows over tp\nshard "{embed,head}" vocab over tp',
    'mesh (dp=2, tp=2)\nshard "*" dim 0 over tp\nshard "layers.[!1].{up,down}.weight" dim -1 over dp, tp',
    'mesh (tp=2, dp=2)\nshard "*.up" columns over tp\nstore "*" dim 0 over dp\nstore "*.?.down.bias" dim -1 over dp',
    'mesh (dp=2, tp=2)\nshard "*.up" columns over tp\nstore "*" dim 0 over dp',
    'mesh (dp=2, one=1)\nshard "*" dim 0 over one\nstore "*" dim 0 over dp',
    'mesh (a=2, b=2)\nshard "*.up" columns over b, a\nshard "*.down" rows over b, a',
    'mesh (dp=2, tp=2)\nshard "*.up" columns over tp\nshard "embed" dim 1 over dp\nzero 3 over dp { from 33B }',
    'mesh (dp=4, tp=2)\nshard "*.down" rows over tp\nzero 1 over dp\nzero 3 over dp { only "*.up"  from 1KB }',
    'mesh (a=2, b=2, tp=2)\naxes dp = b, a\nshard "*.up" columns over tp\nzero 3 over dp { prefetch 0  within a }',
    'mesh (a=2, b=2, c=2)\naxes all = c, a\nshard "*.up" columns over b\nstore "*" dim -1 over all',
)


@pytest.fixture(autouse=True)
def transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{Conv1D.__module__}.{Conv1D.__qualname__}"
    monkeypatch.setattr(model_parameters, "_TRANSPOSED", {name})
    monkeypatch.setattr(parameter_cuts, "_TRANSPOSED", name)


def rows(plan: str) -> list[str]:
    model, parsed = Net(), Plan.parse(plan)
    call = bind_call(model, (torch.arange(4) % 12,), {})
    program = compile_program(CompileRequest(model, call, parsed, Options(mode=Mode.TRAIN))).program
    return [f"{row.name}: {row.note}" for row in rows_of_plan(program, plan, model)]


@pytest.mark.parametrize("plan", PLANS)
def test_a_program_that_is_placed_as_the_plan_says_has_no_row(plan: str) -> None:
    assert rows(plan) == []


def test_another_class_of_that_name_stores_its_weight_as_a_linear_layer_does() -> None:
    model = nn.ModuleDict({"up": type("Conv1D", (nn.Linear,), {"__module__": "elsewhere"})(6, 8)})
    assert parameter_cuts._outputs(model, "up.weight") == 0


def first_match(plan: Plan, name: str) -> Any:
    return next((statement for statement in plan.parameters if resolve.matches(statement, name)), None)


DIMS = resolve._dims
FAULTS: dict[str, tuple[object, str, Any, str, str]] = {
    "the first statement wins": (
        resolve, "_last_match", first_match, PLANS[2],
        "layers.0.up.weight: the program has it dim 0 over tp; the plan says dim 1 over dp, tp",
    ),
    "columns of a transposed layer are its inputs": (
        resolve, "_DIMS", {**resolve._DIMS, (OwnerKind.LINEAR_TRANSPOSED, Role.COLUMNS, "weight"): 0}, PLANS[1],
        "layers.0.up.weight: the program has it dim 0 over tp; the plan says dim 1 over tp",
    ),
    "a set that excludes includes": (
        globs, "translate", lambda glob: globs.re.escape(glob).replace(r"\*", ".*").replace(r"\[!1\]", "1"), PLANS[2],
        "layers.1.up.weight: the program has it dim 1 over dp, tp; the plan says dim 0 over tp",
    ),
    "axes nest in the mesh's order": (
        resolve, "_dims", lambda *args: dict(sorted(DIMS(*args).items())), PLANS[6],
        "layers.0.up.weight: the program has it dim 1 over a, b; the plan says dim 1 over b, a",
    ),
    "store changes nothing": (
        resolve_stored, "_storage", lambda *_: Storage(), PLANS[3],
        "layers.0.up.bias: the program has it dim 0 over tp; the plan says dim 0 over tp, dp",
    ),
    "zero cuts dim 0": (
        Zero, "cuts", lambda self, shape, *_: dict.fromkeys(self.axes, 0), PLANS[7],
        "layers.0.down.weight: the program has it dim 0 over dp; the plan says dim 1 over dp",
    ),
    "zero knows no size": (
        Zero, "is_too_small", lambda *_: False, PLANS[7],
        "layers.0.down.bias: the program has it dim 0 over dp; the plan says whole on every rank",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plan_that_is_read_wrongly_has_a_row(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong, plan, row = FAULTS[fault]
    globs._compiled.cache_clear()
    monkeypatch.setattr(owner, name, wrong)
    found = rows(plan)
    globs._compiled.cache_clear()
    assert row in found
