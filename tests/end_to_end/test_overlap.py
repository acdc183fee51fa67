"""`overlap`: values do not depend on it, and what it leaves in place is in place."""

from __future__ import annotations

from functools import cache

import pytest
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.dsl import Plan, PlanError
from stretto.dsl.error import OverlapCode
from stretto.frontend.captured import Mode
from stretto.runtime.checks.program_check import check
from stretto.runtime.program.program import Program
from stretto.runtime.prover import Backend, prove

from ..subsets import some
from .checking import assert_report, compiled
from .models import MODELS, Case, Size, gpt, plan

TOKENS = "shard activations tokens over tp"


@cache
def _gpt(layers: int) -> Case:
    return gpt(Size(layers=layers))


@cache
def _program(mesh: str, *lines: str) -> Program:
    return compiled(_gpt(1 + ("pp" in mesh)), plan("gpt", mesh, *lines)).program


def _between(program: Program) -> int:
    """How many operations stand between a start and the wait for it."""
    count = 0
    for function in program.functions.values():
        under_way: set[int] = set()
        for step in function.code:
            if step.op == "comm.wait":
                under_way -= {*step.reads()}
            elif step.op.endswith("_start"):
                under_way |= {*step.writes()}
            else:
                count += bool(under_way)
    return count


@pytest.mark.parametrize(
    ("mesh", "lines"),
    some(
        ("tp=2", (TOKENS,)),
        ("dp=2, tp=2", (TOKENS, "zero 3 over dp")),
        ("pp=2", ("pipeline over pp { microbatches 4  schedule 1f1b }",)),
        ("pp=2, dp=2", ("pipeline over pp { microbatches 2  schedule zb-v }", "zero 2 over dp")),
        ("pp=2, tp=2", ("pipeline over pp { microbatches 4  schedule dualpipe-v }",)),
    ),
)
def test_at_level_0_all_communication_is_in_place_and_values_stay(mesh: str, lines: tuple[str, ...]) -> None:
    program, moved = _program(mesh, *lines, "overlap { level 0 }"), _program(mesh, *lines)
    assert _between(program) == 0 < _between(moved)
    assert prove(moved).safe
    assert "pp" in mesh or prove(moved).peak_bytes <= prove(program).peak_bytes
    assert_report(check(program))


@pytest.mark.slow
@pytest.mark.parametrize("lines", [("zero 3 over dp",), (), ("zero 3 over dp { bucket 4KB  prefetch 2 }",)])
def test_level_1_takes_no_more_memory_than_level_0_and_so_much_more_as_the_plan_allows(lines: tuple[str, ...]) -> None:
    peaks = [
        prove(_program("dp=2", *lines, each)).peak_bytes
        for each in ("overlap { level 0 }", "", "overlap { memory +2% }", "overlap { memory 1GB }")
    ]
    assert peaks[1] <= peaks[0] < peaks[3] and peaks[1] <= peaks[2] <= 1.02 * peaks[0]
    assert_report(check(_program("dp=2", *lines)))


@pytest.mark.slow
def test_memory_that_a_rank_cannot_do_with_is_refused_with_the_least() -> None:
    case, lines = gpt(Size(layers=2)), ("zero 3 over dp", "overlap { level 1  memory 30KB }")
    with pytest.raises(PlanError) as refused:
        compile_program(
            CompileRequest.of(case.model, (), case.inputs, Plan.parse(plan("gpt", "dp=2", *lines)), Options(Mode.TRAIN))
        )
    assert refused.value.code == OverlapCode.DOES_NOT_FIT and "more than 30KB" in refused.value.message
    assert refused.value.span is not None


@pytest.mark.slow
def test_only_what_is_hidden_moves() -> None:
    lines = (TOKENS, "zero 3 over dp")
    counts = [_between(_program("dp=2, tp=2", *lines, each)) for each in ("overlap { hide all_gather }", "")]
    assert 0 < counts[0] < counts[1]


@pytest.mark.slow
def test_lanes_of_axes_are_proved() -> None:
    program = _program("dp=2, tp=2", TOKENS, "zero 3 over dp", "overlap { lanes compute, tp, dp }")
    lanes = {step.lane for function in program.functions.values() for step in function.code}
    assert lanes == {"", "tp", "dp"} and prove(program, backend=Backend.GLOO).safe
    assert_report(check(program))


FUSE = "overlap { fuse all_gather+matmul, matmul+reduce_scatter }"


def _products_under_way(program: Program) -> int:
    """How many products stand between the start of a hop and the wait for it."""
    count = 0
    for function in program.functions.values():
        hops: set[int] = set()
        for step in function.code:
            hops -= {*step.reads()} if step.op == "comm.wait" else set()
            hops |= {*step.writes()} if step.op == "comm.permute_start" else set()
            count += bool(hops) and step.op in ("aten.mm.default", "aten.addmm.default")
    return count


@pytest.mark.parametrize(
    ("model", "mesh", "lines"),
    some(
        ("gpt", "tp=2", (TOKENS,)),
        ("llama", "tp=3", (TOKENS,)),
        ("llama", "tp=2", (TOKENS,)),
        ("llama", "dp=2, tp=2", (TOKENS, "zero 3 over dp")),
        ("gpt2", "tp=2", (TOKENS,)),
        ("llama", "pp=2, tp=2", (TOKENS, "pipeline over pp { microbatches 2  schedule zb-h1 }")),
    ),
)
def test_products_run_in_chunks_beside_their_ring(model: str, mesh: str, lines: tuple[str, ...]) -> None:
    size = Size(layers=1, heads=6, width=24, seq=12) if "tp=3" in mesh else Size(layers=1 + ("pp" in mesh))
    program = compiled(MODELS[model](size), plan(model, mesh, *lines, FUSE.replace("}", "memory +50% }"))).program
    assert _products_under_way(program) > 6 and prove(program).safe
    assert_report(check(program))


@pytest.mark.slow
def test_a_fusion_that_matches_nothing_is_a_warning_with_the_nearest_miss() -> None:
    remarks = compiled(gpt(Size(layers=1)), plan("gpt", "tp=2", FUSE)).program.remarks
    warnings = [str(remark["message"]) for remark in remarks if remark["kind"] == "warning"]
    assert any(each.startswith('"all_gather+matmul" fuses nothing: ') for each in warnings), warnings
    assert any(each.startswith('"matmul+reduce_scatter" fuses nothing: there is no') for each in warnings), warnings


@pytest.mark.parametrize(
    ("model", "mesh", "lines", "norm"),
    some(
        ("llama", "tp=2", (), "rms_norm"),
        ("gpt", "tp=2", (), "layer_norm"),
        ("llama", "dp=2, tp=2", ("zero 2 over dp",), "rms_norm"),
        ("llama", "tp=2", ("split batch into 2 { order interleave }",), "rms_norm"),
        ("llama", "tp=2", ("split tokens into 2 { order interleave }",), "rms_norm"),
        ("llama", "pp=2, tp=2", ("pipeline over pp { microbatches 2  schedule 1f1b }",), "rms_norm"),
    ),
)
def test_norms_behind_sums_are_computed_on_parts_of_the_tokens(
    model: str, mesh: str, lines: tuple[str, ...], norm: str
) -> None:
    fuse = f"overlap {{ fuse all_reduce+{norm} }}"
    compiled_ = compiled(MODELS[model](Size(layers=1 + ("pp" in mesh))), plan(model, mesh, *lines, fuse))
    messages = [str(each["message"]) for each in compiled_.program.remarks if each["pass"] == "scatter-norms"]
    assert sum(f"is scattered before {norm}" in message for message in messages) >= 2, messages
    assert prove(compiled_.program).safe
    assert_report(check(compiled_.program))
