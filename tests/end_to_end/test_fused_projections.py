"""A fused projection cut by columns is cut inside each of its blocks: nothing is gathered, and values are the same."""

from __future__ import annotations

import pytest
from stretto.driver.compile.request import Compiled
from stretto.runtime.checks.program_check import check
from stretto.runtime.prover import prove

from ..subsets import only
from .checking import assert_report, compiled_model
from .fused_models import MODELS, inputs, plan_of
from .traffic import kinds, messages

WHOLE = ("split", "slices, grouped", "view", "gate and input")


def _compiled(name: str, plan: str) -> Compiled:
    return compiled_model(MODELS[name](), inputs(), plan, loss_only=True)


@pytest.mark.parametrize("name", WHOLE)
def test_ranks_send_what_megatron_sends(name: str) -> None:
    compiled = _compiled(name, plan_of("mesh (tp=2)", name))
    assert kinds(messages(compiled)) == {"all_reduce": 3}  # nothing reduces the gradient of the inputs
    assert prove(compiled.program).safe
    assert_report(check(compiled.program, steps=2))


@pytest.mark.parametrize(
    ("name", "plan"),
    only(
        [("slices, grouped", "mesh (dp=2, tp=2)|tp|")],
        [
            *[(name, "mesh (dp=2, tp=2)|tp|") for name in MODELS],
            *[(name, 'mesh (dp=2, tp=2)|tp|store "*" dim 0 over dp') for name in MODELS],
            *[(name, "mesh (a=2, b=2)|b, a|") for name in MODELS],
            *[(name, "mesh (pp=2, tp=2)|tp|pipeline over pp { microbatches 2 }") for name in MODELS],
            *[(name, "mesh (tp=2)|tp|shard activations tokens over tp") for name in MODELS],
        ],
    ),
)
def test_ranks_compute_what_one_device_does_beside_other_statements(name: str, plan: str) -> None:
    mesh, axes, rest = plan.split("|")
    assert_report(check(_compiled(name, plan_of(mesh, name, axes, rest)).program, steps=2))


def test_blocks_that_ranks_do_not_divide_are_cut_as_a_whole_and_a_remark_says_so() -> None:
    compiled = _compiled("split, one head of keys", plan_of("mesh (tp=3)", "split, one head of keys"))
    assert "3 ranks over tp do not divide each of the blocks of 32, 8, 8" in str(compiled.program.remarks)
    assert not any(shard.blocks for each in compiled.program.inputs for shard in each.shards)
