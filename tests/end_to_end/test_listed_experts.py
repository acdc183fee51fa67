"""`experts` for a list of modules: rows go to the ranks of their experts, and each parameter keeps its name."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.compile.request import Compiled
from stretto.driver.readings.plan_rows import rows_of_plan
from stretto.runtime.checks.program_check import check
from stretto.runtime.processes.jobs import check_entry
from stretto.runtime.prover import prove

from ..forked_ranks import values_of_ranks
from ..frontend.graph.expert_lists import COUNT, INNER, WIDTH, Listed
from ..subsets import some
from .checking import assert_report, compiled_model
from .traffic import messages

EXPERTS = 'mesh (dp=2)\nexperts "*.experts" over dp'
PLANS = (
    EXPERTS + " { bound 2 }",
    'mesh (ep=4)\nexperts "*.experts.*" over ep',
    'mesh (dp=2, ep=2)\nexperts "*.experts" over ep\nshard inputs batch over ep',
    'mesh (dp=2, cp=2)\naxes ep = dp, cp\nexperts "*.experts" over ep\nshard inputs dim 1 over cp',
    EXPERTS + "\nzero 3 over dp",
    EXPERTS + " { move weights }",
    EXPERTS + " { move auto }",
    EXPERTS + '\nrecompute "layers.*"',
    'mesh (dp=2, tp=2)\nexperts "*.experts" over dp\nshard "*.up" columns over tp\nshard "*.down" rows over tp',
    'mesh (dp=2, tp=2)\nshard "*.up" columns over tp\nshard "*.down" rows over tp',
    'mesh (pp=2, dp=2)\nexperts "*.experts" over dp\npipeline over pp { microbatches 2  schedule zb-v }',
)


def compiled(plan: str, **options: Any) -> Compiled:
    torch.manual_seed(0)
    return compiled_model(Listed(**options), {"x": torch.randn(8, 2, WIDTH)}, plan)


@pytest.mark.parametrize("plan", some(*PLANS))
def test_values_are_those_of_the_loop_on_one_device(plan: str) -> None:
    layers = 1 if plan == PLANS[0] else 4
    made = compiled(plan, layers=layers)
    assert_report(check(made.program))
    assert prove(made.program).safe
    assert rows_of_plan(made.program, plan, Listed(layers=layers)) == []


@pytest.mark.slow
def test_parts_of_experts_are_exchanged_for_the_forward_the_backward_and_the_gradients() -> None:
    """W (n-1)/n^2 elements of a layer's W each time; the rest of the exchanges is counts and rows."""
    sent = [each for each in messages(compiled(EXPERTS, bias=False)) if each.kind == "all_to_all"]
    weights = COUNT * (2 * INNER * WIDTH + INNER * WIDTH)
    exchanged = [prod(each.operand_shape) for each in sent if len(each.operand_shape) == 3]
    assert sum(exchanged) // 2 == 3 * weights // 4


@pytest.mark.slow
def test_a_checkpoint_and_an_optimizer_see_each_expert_s_parameters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, model = Listed().double(), Listed().double()
    model.load_state_dict(plain.state_dict())
    trained = stretto.compile(model, plan=EXPERTS)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.1) for each in (plain, model)]
    for step in range(3):
        x = torch.randn(4, 2, WIDTH, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for run, optimizer in zip((plain, trained), optimizers, strict=True):
            run(x).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("plan", "count", "found"),
    some(
        ("mesh (dp=2)\nexperts '*.experts' over dp", 3, "is of one of 3 experts, which 2 ranks over dp cannot"),
        ("mesh (dp=2)\nexperts '*.experts' over dp { capacity 1 }", 4, "whose rows cannot be dropped yet"),
        ("mesh (dp=2)\nexperts 'layers' over dp", 4, "is cut as experts, but no row is multiplied"),
    ),
)
def test_what_a_list_cannot_do_is_refused(plan: str, count: int, found: str) -> None:
    with pytest.raises(StrettoError, match=f"E0140.*{found}"):
        compiled(plan.replace("'", '"'), count=count)


def checked(rank: int, folder: Path) -> dict[str, Any]:
    return check_entry({"folder": str(folder), "steps": 2, "seed": 1})


@pytest.mark.slow
def test_processes_exchange_experts(tmp_path: Path) -> None:
    compiled(EXPERTS, layers=3).program.save(tmp_path / "program")
    for report in values_of_ranks(checked, 2, tmp_path / "program"):
        assert report["rows"] and all(row["verdict"] == "equal" for row in report["rows"])
