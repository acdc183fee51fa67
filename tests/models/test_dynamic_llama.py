"""A Llama with any batch and sequence length: judged in float64 at sizes that its program was not made from.

Float64 is that of a check, in which casts inside the model lose nothing. Against the plain model in eager mode a loss
differs by 1e-7: transformers computes norms, rotary angles and the loss in float32, whatever the parameters are.
"""

from __future__ import annotations

import pytest
import torch
from stretto.driver.check.live_model import comparison_for
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.compile_target import with_named_sizes
from stretto.driver.compile.model_source import source_record
from stretto.driver.compile.request import CompileRequest, Options
from stretto.dsl import Plan
from stretto.frontend.captured import Mode
from stretto.frontend.dynamic_sizes.dynamic_dims import DynamicDims
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request
from stretto.frontend.to_ir import Floats
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import Verdict
from stretto.runtime.program.program import Program

from .zoo import target_of

SHARDED = """
shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp
shard "*.o_proj", "*.down_proj" rows over tp
shard "*embed_tokens", "lm_head" vocab over tp
"""
PLANS = {
    "dp": "mesh (dp=2)",
    "tp": f"mesh (tp=2){SHARDED}",
    "dp and tp": f"mesh (dp=2, tp=2){SHARDED}",
    "sequence": f"mesh (tp=2){SHARDED}shard activations tokens over tp",
    "dp and sequence": f"mesh (dp=2, tp=2){SHARDED}shard activations tokens over tp",
}
SIZES = ((2, 6), (6, 22), (4, 64), (3, 10), (5, 7), (4, 33), (7, 11))


def dynamic(plan: str, mode: Mode, batch: int, seq: int) -> Program:
    """The program of a call of these sizes, with both of them named."""
    request = {"dtype": "float64", "batch": batch, "seq": seq}
    target = load_target(target_of("llama"), Request(mode=mode, dtype="float64", batch=batch, seq=seq))
    dims = DynamicDims.of({name: {0: "batch", 1: "seq"} for name in target.inputs})
    options = Options(
        mode=mode,
        loss_only=mode is Mode.TRAIN,
        floats=Floats.FLOAT64,
        arguments={"inputs": target.input_ranges},
        source=source_record(target.source, request),
    )
    made = CompileRequest.of(target.model, (), target.inputs, Plan.parse(PLANS[plan]), options)
    return compile_program(with_named_sizes(made, dims)).program


@pytest.mark.slow
@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("plan", PLANS)
def test_a_llama_is_right_at_sizes_that_it_was_not_compiled_for(plan: str, mode: Mode, uneven: bool) -> None:
    torch.manual_seed(0)
    program = dynamic(plan, mode, *((3, 9) if uneven else (4, 8)))
    assert program.symbolic is not None
    asked = [{"batch": batch, "seq": seq} for batch, seq in SIZES]
    bound = [program.bind(sizes) for sizes in asked if not program.symbolic.refusal(sizes)]
    assert len(bound) >= 2
    for each in bound:
        comparison = comparison_for(each, target_of("llama"))
        report = check(each, expected=comparison.expected)
        assert comparison.live, comparison.why
        assert report.passed, "\n".join(str(row) for row in report.rows if row.verdict is Verdict.DIFFERS)
