"""`experts`: rows go to the ranks of their experts and come back, and the values are those of one device.

Of the rows of a rank, those are sent whose expert is on another rank: forward there and back, and backward there and
back (GShard, arXiv:2006.16668, section 3.2: two exchanges a layer in each direction).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.compile.compile_program import compile_capture
from stretto.driver.compile.request import Compiled, Options
from stretto.driver.readings.plan_rows import rows_of_plan
from stretto.driver.report.changed_function import changes
from stretto.driver.report.explain import explain
from stretto.dsl import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode
from stretto.frontend.to_ir import Floats
from stretto.runtime.checks.capacity import CAPACITY
from stretto.runtime.checks.program_check import check
from stretto.runtime.processes.jobs import check_entry
from stretto.runtime.prover import prove
from stretto.runtime.threads.communicator import RankGroup
from stretto.runtime.threads.rendezvous import Call
from torch import Tensor

from ..forked_ranks import values_of_ranks
from ..subsets import only
from .checking import assert_report, compiled_model
from .expert_models import CHOICES, COUNT, INNER, WIDTH, Experts, GroupedExperts, Mixture
from .traffic import kinds, messages

BATCH, SEQ = 4, 2
FOLDED = "mesh (dp=2)\naxes ep = dp\nexperts '*.experts' over ep".replace("'", '"')
PLANS = (
    'mesh (ep=2)\nexperts "*.experts" over ep { bound 2 }',
    'mesh (ep=4)\nexperts "*.experts" over ep',
    FOLDED,
    'mesh (dp=2, ep=2)\nexperts "*.experts" over ep\nshard inputs batch over ep',
    'mesh (dp=2, tp=2)\naxes ep = dp, tp\nexperts "*.experts" over ep\nshard "*.shared" columns over tp',
    'mesh (ep=2, tp=2)\nexperts "*.experts" over ep\nshard "*.up" dim 1 over tp\nshard "*.down" dim 2 over tp',
    'mesh (cp=2)\nexperts "*.experts" over cp\nshard inputs dim 1 over cp',
    'mesh (dp=2)\nexperts "*.experts" over dp\nzero 3 over dp',
    'mesh (dp=2)\nshard "*.shared" dim 0 over dp',
    'mesh (dp=2)\nzero 3 over dp { only "*.experts" }',
)


@cache
def _captured(experts: type[Experts], layers: int) -> tuple[Mixture, Capture]:
    torch.manual_seed(0)
    model = Mixture(experts, layers=layers)
    return model, capture(model, (), {"x": torch.randn(BATCH, SEQ, WIDTH)}, mode=Mode.TRAIN)


@cache
def _compiled(plan: str, experts: type[Experts], layers: int) -> Compiled:
    model, captured = _captured(experts, layers)
    return compile_capture(captured, model, Plan.parse(plan), Options(mode=Mode.TRAIN, floats=Floats.FLOAT64))


CASES = [(plan, experts, layers) for plan in PLANS for experts in (Experts, GroupedExperts) for layers in (1, 3)]


@pytest.mark.parametrize(
    ("plan", "experts", "layers"), only([(PLANS[0], GroupedExperts, 1), (FOLDED, Experts, 1)], CASES)
)
def test_values_are_those_of_one_device(plan: str, experts: type[Experts], layers: int) -> None:
    made = _compiled(plan, experts, layers)
    assert_report(check(made.program))
    assert prove(made.program).safe
    assert rows_of_plan(made.program, plan, _captured(experts, layers)[0]) == []


CAPPED = FOLDED + " { capacity 0.75 }"
CAPPED_PLANS = (
    CAPPED,
    'mesh (ep=1)\nexperts "*.experts" over ep { capacity 0.5 }',
    'mesh (dp=2, ep=2)\nexperts "*.experts" over ep { capacity 1.5  bound 2 }',
    'mesh (dp=2, ep=2)\nexperts "*.experts" over ep { capacity 0.75 }\nshard inputs batch over ep',
    'mesh (cp=2)\nexperts "*.experts" over cp { capacity 0.6 }\nshard inputs dim 1 over cp',
    'mesh (dp=2)\nexperts "*.experts" over dp { capacity 0.6 }\nzero 3 over dp',
    'mesh (dp=2, tp=2)\naxes ep = dp, tp\nexperts "*.experts" over ep { capacity 0.7 }',
)
CAPPED_CASES = [
    (plan, experts, layers) for plan in CAPPED_PLANS for experts in (Experts, GroupedExperts) for layers in (1, 3)
]


@pytest.mark.parametrize(("plan", "experts", "layers"), only([(CAPPED, GroupedExperts, 1)], CAPPED_CASES))
def test_experts_with_a_capacity_are_those_of_one_device_with_it(
    plan: str, experts: type[Experts], layers: int
) -> None:
    made, model = _compiled(plan, experts, layers), _captured(experts, layers)[0]
    assert_report(check(made.program))
    assert prove(made.program).safe
    assert rows_of_plan(made.program, plan, model) == []
    other = re.sub("capacity [0-9.]*", "capacity none", plan)
    assert {row.name for row in rows_of_plan(made.program, other, model)} == {
        "experts bound",
        *(f"capacity of {name}" for name, _ in model.named_parameters() if ".experts." in name),
    }
    [change] = changes(made.program)
    assert "times the even share of rows, and drop others" in change


@pytest.mark.slow
def test_a_check_sees_that_rows_are_dropped() -> None:
    program = _compiled(CAPPED, Experts, 1).program
    forgotten = {key: value for key, value in program.manifest.arguments.items() if key != CAPACITY}
    report = check(replace(program, manifest=replace(program.manifest, arguments=forgotten)))
    assert not report.passed


@pytest.mark.slow
def test_microbatches_that_are_computed_alone_have_a_capacity_each() -> None:
    pipeline = "pipeline over pp { microbatches 2  per microbatch }"
    plan = f'mesh (pp=2, dp=2)\nexperts "*.experts" over dp {{ capacity 0.75 }}\n{pipeline}'
    made = compiled_model(Mixture(layers=2), {"x": torch.randn(8, SEQ, WIDTH)}, plan)
    assert_report(check(made.program))
    with pytest.raises(StrettoError, match=r"E0403.*needs rows of other microbatches"):
        compiled_model(Mixture(layers=2), {"x": torch.randn(8, SEQ, WIDTH)}, plan.replace("  per microbatch", ""))


@pytest.mark.slow
@pytest.mark.parametrize("items", ["microbatches 2", "microbatches 2  schedule zb-v", "microbatches 4"])
@pytest.mark.parametrize("experts", [Experts, GroupedExperts])
def test_stages_route_the_rows_of_each_microbatch(items: str, experts: type[Experts]) -> None:
    plan = f'mesh (pp=2, dp=2)\nexperts "*.experts" over dp\npipeline over pp {{ {items} }}'
    made = compiled_model(Mixture(experts, layers=4, balance=0), {"x": torch.randn(8, SEQ, WIDTH)}, plan)
    assert_report(check(made.program))
    assert prove(made.program).safe


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gpipe", "breadth-first"])
@pytest.mark.parametrize(("experts", "layers"), [(Experts, 2), (GroupedExperts, 4)])
def test_a_balance_loss_of_the_whole_batch_waits_for_all_forwards(
    schedule: str, experts: type[Experts], layers: int
) -> None:
    items = f"microbatches 2  schedule {schedule}"
    plan = f'mesh (pp=2, dp=2)\nexperts "*.experts" over dp\npipeline over pp {{ {items} }}'
    made = compiled_model(Mixture(experts, layers=layers), {"x": torch.randn(8, SEQ, WIDTH)}, plan)
    assert_report(check(made.program))
    assert prove(made.program).safe


def test_a_layer_exchanges_rows_twice_in_each_direction_and_their_counts_once() -> None:
    for experts in (Experts, GroupedExperts):
        sent = kinds(messages(_compiled(FOLDED, experts, 1)))
        assert (sent["all_to_all_rows"], sent["all_to_all"]) == (4, 1)


def test_explain_counts_the_even_share_of_rows() -> None:
    shown = {row["kind"]: row for row in explain(_compiled(FOLDED, Experts, 1).program).to_json()["totals"]}
    rows = BATCH * SEQ * CHOICES // 2
    assert shown["all_to_all_rows"]["sent_bytes"] == 4 * rows // 2 * WIDTH * 8


def _advice(made: Compiled) -> list[str]:
    remarks = [remark for run in made.runs for remark in run.report.remarks]
    return [remark.message for remark in remarks if "of weights" in remark.message]


MOVED = FOLDED + " { move weights }"
MOVED_PLANS = (
    MOVED,
    'mesh (dp=2, tp=2)\nexperts "*.experts" over dp { move weights }\n'
    'shard "*.up" dim 1 over tp\nshard "*.down" dim 2 over tp',
    'mesh (dp=2)\nexperts "*.experts" over dp { capacity 0.75  move weights }\nzero 3 over dp',
    'mesh (edp=2, ep=2)\naxes dp = edp, ep\nexperts "*.experts" over ep { move weights }\nzero 2 over dp',
)


@pytest.mark.slow
@pytest.mark.parametrize("plan", MOVED_PLANS)
@pytest.mark.parametrize(("experts", "layers"), [(Experts, 1), (GroupedExperts, 3)])
def test_weights_that_move_give_the_values_of_one_device(plan: str, experts: type[Experts], layers: int) -> None:
    made = _compiled(plan, experts, layers)
    assert_report(check(made.program))
    assert prove(made.program).safe and "all_to_all_rows" not in kinds(messages(made))
    assert rows_of_plan(made.program, plan, _captured(experts, layers)[0]) == []


def test_what_moves_is_what_sends_fewer_bytes() -> None:
    """Tutel (arXiv:2206.03382), section 3.1. Weights: half of the experts twice, and their gradients."""
    plan, of_weights = FOLDED + " { move auto }", 3 * COUNT // 2 * 3 * INNER * WIDTH * 8
    made = compiled_model(Mixture(), {"x": torch.randn(BATCH, 8 * SEQ, WIDTH)}, plan)
    assert_report(check(made.program))
    assert 'experts "*.experts" over dp { move weights }' in explain(made.program).implied
    sent = {row["kind"]: row["sent_bytes"] for row in explain(made.program).to_json()["totals"]}
    assert sent["all_gather"] + sent["reduce_scatter"] == of_weights and "all_to_all_rows" not in sent


@pytest.mark.slow
def test_rows_move_where_they_are_fewer_bytes_in_all_layers_together() -> None:
    made = _compiled(FOLDED + " { move auto }", GroupedExperts, 3)
    assert 'experts "*.experts" over dp { move tokens }' in explain(made.program).implied
    of_rows = 3 * 4 * BATCH * SEQ * CHOICES // 2 * WIDTH * 8 // 2
    assert any(f"a rank sends {of_rows} bytes of rows" in str(remark["message"]) for remark in made.program.remarks)
    assert kinds(messages(made)) == kinds(messages(_compiled(FOLDED, GroupedExperts, 3)))


@pytest.mark.slow
def test_explain_says_where_weights_are_fewer_bytes_than_rows() -> None:
    """A rank sends half of its rows 4 times; its half of the experts it would send 3 times."""
    of_rows = 4 * BATCH * SEQ * CHOICES // 2 * WIDTH * 8 // 2
    of_weights = 3 * COUNT // 2 * 3 * INNER * WIDTH * 8
    assert of_rows < of_weights and not _advice(_compiled(FOLDED, Experts, 1))
    [advice] = _advice(compiled_model(Mixture(), {"x": torch.randn(BATCH, 8 * SEQ, WIDTH)}, FOLDED))
    assert advice.startswith(f"a rank sends {8 * of_rows} bytes of rows, and would send {of_weights} of weights")
    assert 'experts "*.experts" over dp { move weights } moves these instead' in advice


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """By rank, the rows of experts' width that it sends to others."""
    counts: Counter[int] = Counter()
    join = RankGroup.join

    def counted(self: RankGroup, rank: int, members: Any, number: int, call: Call, tensors: Sequence[Tensor]) -> Any:
        if call.op == "all_to_all_rows":
            assert tensors[0].shape[1] == WIDTH, "what experts compute inside is not sent"
            counts[rank] += sum(n for member, n in enumerate(tensors[1].tolist()) if member != rank)
        return join(self, rank, members, number, call, tensors)

    monkeypatch.setattr(RankGroup, "join", counted)
    return counts


def _step(model: Mixture, plan: str, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = stretto.compile(model, plan=plan)(x)
    (1.7 * loss).backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _model(*favourites: int) -> Mixture:
    """A model whose router gives every token to the favourites where there are some."""
    torch.manual_seed(3)
    model = Mixture().double()
    with torch.no_grad():
        for expert in favourites:
            model.layers[0].router.bias[expert] += 100 - expert
    return model


@pytest.mark.parametrize("favourites", only([((0, 1),)], [((),), ((0,),), ((0, 1),)]))
def test_rows_whose_expert_is_elsewhere_are_sent_and_no_others(rows: Counter[int], favourites: tuple[int, ...]) -> None:
    model, x = _model(*favourites), torch.randn(BATCH, SEQ, WIDTH, dtype=torch.float64)
    (1.7 * (expected := model(x))).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    layer = model.layers[0]
    chosen = layer.router(layer.norm(x)).topk(CHOICES).indices.reshape(2, -1) // (COUNT // 2)
    elsewhere = (chosen != torch.arange(2)[:, None]).sum(1)
    loss, found = _step(_model(*favourites), FOLDED, x)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-9)
    both = int(elsewhere.sum())  # there by one, and back by the other
    assert dict(rows) == {0: 2 * both, 1: 2 * both}


def test_a_bound_that_is_exceeded_stops_the_run_with_rank_and_layer() -> None:
    x = torch.randn(BATCH, SEQ, WIDTH, dtype=torch.float64)
    with pytest.raises(StrettoError) as caught:
        _step(_model(0, 1), FOLDED + " { bound 1.5 }", x)
    text = str(caught.value)
    assert "E0338" in text and "rank 0" in text and "layers.0" in text
    assert "16 rows come, and the bound is 12" in text


class Capped(Experts):
    """Experts that make zeros of the rows behind the first `most` of each."""

    most = 3

    def forward(self, rows: Tensor, experts: Tensor) -> Tensor:
        chosen = experts.tolist()
        kept = [chosen[:row].count(expert) < self.most for row, expert in enumerate(chosen)]
        return torch.where(torch.tensor(kept).unsqueeze(1), super().forward(rows, experts), 0)


def test_rows_behind_the_capacity_of_an_expert_get_zeros_and_are_not_sent(rows: Counter[int]) -> None:
    """Switch Transformer (arXiv:2101.03961), section 2.2. 16 rows of 4 experts: 0.75 of the even share are 3."""
    model, x = _model(0), torch.randn(BATCH, SEQ, WIDTH, dtype=torch.float64)
    loss, found = _step(model, CAPPED, x)
    capped = _model(0)
    capped.layers[0].experts.__class__ = Capped
    (1.7 * (expected := capped(x))).backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)
    for name, parameter in capped.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-9)
    (1.7 * (dropless := _model(0)(x))).backward()
    assert abs(dropless - expected) > 1e-3
    assert sum(rows.values()) <= 4 * Capped.most * COUNT


def test_weights_of_one_choice_of_experts_have_one_capacity() -> None:
    plan = 'mesh (ep=2)\nexperts "*.up" over ep { capacity 1 }\nexperts "*.down" over ep'
    with pytest.raises(StrettoError, match=r'E0140.*experts.up" has a capacity, and "layers.0.experts.down"'):
        _compiled(plan, Experts, 1)


def test_experts_that_ranks_cannot_share_are_refused() -> None:
    with pytest.raises(StrettoError, match=r"E0140.*has 4 experts, which 3 ranks over ep cannot share evenly"):
        _compiled('mesh (ep=3)\nexperts "*.experts" over ep', Experts, 1)


def test_a_glob_without_experts_is_refused() -> None:
    with pytest.raises(StrettoError, match=r"E0140.*router.weight.*no row is multiplied by a matrix of it"):
        _compiled('mesh (ep=2)\nexperts "*.router.weight" over ep', Experts, 1)


def checked(_rank: int, folder: Path) -> dict[str, Any]:
    return check_entry({"folder": str(folder), "steps": 2, "seed": 1})


@pytest.mark.slow
@pytest.mark.parametrize("plan", [FOLDED, CAPPED])
def test_processes_exchange_rows(plan: str, tmp_path: Path) -> None:
    _compiled(plan, GroupedExperts, 3).program.save(tmp_path / "program")
    for report in values_of_ranks(checked, 2, tmp_path / "program"):
        assert report["rows"] and all(row["verdict"] == "equal" for row in report["rows"])
