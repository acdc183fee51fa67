"""Parameters stored cut over an axis: values, what crosses ranks, and how much of a model a rank holds at once."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.dsl import Plan
from stretto.ir.module import Module, operations
from stretto.ir.operations import use_of
from stretto.passes.manager import PassManager
from stretto.passes.pipeline_text import parse_pipeline
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import Verdict
from stretto.runtime.prover import prove

from ..subsets import some
from .checking import assert_equal, compiled
from .models import MODELS, Case, Size, plan
from .traffic import kinds, messages

SIZE = {"vocab": 44, "width": 16, "heads": 4, "head": 4, "inner": 24, "seq": 8}
STORE = 'store "*" dim 0 over dp'
PLANS = {
    "dp=2": (STORE,),
    "dp=4": (STORE,),
    "tp=2, dp=2": (STORE,),
    "dp=2, tp=2": (STORE,),
    "dp=2, cp=2": ('store "*" dim 0 over dp, cp', "shard inputs dim 1 over cp"),
    "dp=2, pp=2": (STORE, "pipeline over pp { microbatches 2 }"),
    "pp=2, dp=2": (STORE, "pipeline over pp { microbatches 2  schedule zb-v }"),
}


@cache
def _case(model: str, layers: int = 2) -> Case:
    return MODELS[model](Size(batch=4, layers=layers, **SIZE))


@pytest.mark.parametrize(
    ("model", "mesh"),
    some(("llama", "dp=2"), *(case for case in product(MODELS, PLANS) if case != ("llama", "dp=2"))),
)
def test_a_model_trains_as_on_one_device(model: str, mesh: str) -> None:
    assert_equal(_case(model), plan(model, mesh, *PLANS[mesh]))


@pytest.mark.parametrize("mesh", some("tp=2, dp=2", "dp=2, cp=2", "dp=2, pp=2"))
@pytest.mark.slow
def test_a_gpt_trains_beside_other_axes_as_on_one_device(mesh: str) -> None:
    assert_equal(_case("gpt"), plan("gpt", mesh, *PLANS[mesh]))


def test_extents_that_ranks_do_not_divide_are_stored_too() -> None:
    size = Size(batch=6, layers=1, **{**SIZE, "vocab": 41, "inner": 25})
    assert_equal(MODELS["gpt"](size), plan("gpt", "dp=3", STORE))


def test_each_layer_gathers_its_parameters_once_each_way_and_scatters_their_gradients() -> None:
    program = compiled(_case("gpt"), plan("gpt", "dp=2", STORE))
    parameters = len(program.program.of_kind("parameter"))
    sent = kinds(messages(program))
    of_layers = [m for m in messages(program) if m.module_path.startswith("blocks")]
    in_layers = sum("blocks" in parameter.name for parameter in program.program.of_kind("parameter"))
    assert kinds(of_layers)["reduce_scatter"] == in_layers
    assert in_layers < kinds(of_layers)["all_gather"] <= 2 * in_layers
    assert parameters < sent["all_gather"] <= 2 * parameters + 2
    assert sent["all_reduce"] == 2  # the loss, and how many targets it has
    assert prove(program.program).safe


def test_gathers_of_one_parameter_are_never_taken_for_one() -> None:
    texts: dict[str, str] = {}
    compiled(_case("gpt"), plan("gpt", "dp=2", STORE), after=lambda name, module: texts.update({name: module.text()}))
    names = list(texts)
    for name in names[names.index("gather-parameters") :]:
        module = Module.parse(texts[name])
        before = _gathers(module)
        PassManager(parse_pipeline("cse")).run(module)
        assert _gathers(module) == before, name


def _gathers(module: Module) -> int:
    return sum(use_of(op) is not None for f in module.functions().values() for op in operations(f))


def _peak(layers: int, *lines: str) -> int:
    return prove(compiled(_case("gpt", layers), plan("gpt", "dp=2", *lines)).program).peak_bytes


@pytest.mark.slow
def test_a_rank_holds_a_part_of_all_parameters_and_few_whole_ones() -> None:
    """Each further layer adds half of what it adds where parameters are whole, and not more."""
    whole, stored = (_peak(6, *lines) - _peak(3, *lines) for lines in ((), (STORE,)))
    assert stored < whole


@pytest.mark.slow
def test_gradients_of_a_tied_weight_are_reduced_in_the_dtype_that_the_plan_says() -> None:
    """Its two gradients are added before they are reduced: over a stored axis neither is scattered for itself."""
    case, text = _case("gpt2", 1), plan("gpt2", "dp=2", STORE, "precision { params fp32  compute bf16  reduce fp32 }")
    options = Options(loss_only=True, arguments={"inputs": case.about})
    program = compile_program(CompileRequest.of(case.model, (), case.inputs, Plan.parse(text), options)).program
    report = check(program)
    assert report.passed, "\n".join(str(row) for row in report.rows if row.verdict is Verdict.DIFFERS)
