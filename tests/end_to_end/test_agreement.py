"""Random models under random plans: compiler, interpreter, runtime and prover agree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from stretto.diagnostics import StrettoError
from stretto.driver.compile.request import CAPTURED
from stretto.ir.equivalence import compare
from stretto.ir.module import Module
from stretto.runtime.checks.program_check import check
from stretto.runtime.prover import prove

from .checking import assert_report, compiled_model
from .random_models import Spec, build, specs
from .test_small_modules import plans

COMMON = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def agree(spec: Spec, plan: str) -> bool:
    """Compiled, the model computes in the interpreter what was captured, and on ranks what it does on one device.

    False where the plan is refused, with a way out: then nothing was compared.
    """
    torch.manual_seed(0)
    model, inputs = build(spec)
    texts: dict[str, str] = {}
    try:
        program = compiled_model(
            model, inputs, plan, loss_only=True, after=lambda name, module: texts.update({name: module.text()})
        ).program
    except StrettoError as refusal:
        assert refusal.help, f"{plan}\n{refusal}"
        return False
    captured, *_, final = texts
    assert captured == CAPTURED
    comparison = compare(Module.parse(texts[captured]), Module.parse(texts[final]))
    assert comparison.is_equal, f"{plan}\n{comparison}"
    assert_report(check(program))
    assert prove(program).safe, plan
    return True


@settings(COMMON, max_examples=4)
@given(st.data(), specs)
def test_all_that_run_a_model_agree(data: st.DataObject, spec: Spec) -> None:
    assume(agree(spec, data.draw(plans(build(spec)[0]))))


def test_copies_of_a_function_take_no_name_that_another_has() -> None:
    """Repeated blocks fold to `blocks_forward` and `blocks_forward_1`, and the first of these is called in two ways."""
    spec = Spec(("rms", "rms", "rms", "rms"), heads=1, head=4, inner=3, tokens=True, tied=True)
    assert agree(
        spec,
        'mesh (a=1, b=2)\nshard "embed.weight" dim 1 over b\nshard "blocks.0.norm.weight" dim 0 over a\n'
        'shard "blocks.3.norm.weight" dim 0 over a',
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(COMMON, max_examples=100)
@given(st.data(), specs)
def test_all_that_run_many_models_agree(data: st.DataObject, spec: Spec) -> None:
    assume(agree(spec, data.draw(plans(build(spec)[0]))))


SCHEDULES = ("gpipe", "1f1b", "interleaved", "breadth-first", "zb-h1", "zb-auto", "zb-v", "v-half", "v-min")


@st.composite
def staged(draw: st.DrawFn, spec: Spec) -> str:
    """Two stages, microbatches by any schedule, and each parameter sharded or not on the other axes."""
    sizes = {"pp": 2, "dp": draw(st.sampled_from([1, 2])), "tp": draw(st.sampled_from([1, 2, 3]))}
    mesh = ", ".join(f"{axis}={sizes[axis]}" for axis in draw(st.permutations([*sizes])))
    count = draw(st.sampled_from([1, 2] if sizes["dp"] == 2 else [1, 2, 4]))
    how = draw(st.sampled_from(["time", "memory", "layers"]))
    schedule = draw(st.sampled_from(SCHEDULES))
    lines = [
        f"mesh ({mesh})",
        f"pipeline over pp {{ schedule {schedule}  microbatches {count}  balance {how} }}",
    ]
    for name, parameter in build(spec)[0].named_parameters():
        free = ["dp", "tp"]
        for dim in range(parameter.dim()):
            chosen = draw(st.sampled_from([None, *free]))
            if chosen is not None:
                free.remove(chosen)
                lines.append(f'shard "{name}" dim {dim} over {chosen}')
    return "\n".join(lines)


@settings(COMMON, max_examples=2)
@given(st.data(), specs)
def test_all_that_run_a_model_in_stages_agree(data: st.DataObject, spec: Spec) -> None:
    assume(agree(spec, data.draw(staged(spec))))


@pytest.mark.slow
@settings(COMMON, max_examples=60)
@given(st.data(), specs)
def test_all_that_run_a_model_in_stages_agree_at_length(data: st.DataObject, spec: Spec) -> None:
    assume(agree(spec, data.draw(staged(spec))))
