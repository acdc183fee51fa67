"""raise-idioms finds every idiom of real models, forward and backward, and keeps what they compute."""

import pytest
from stretto.frontend.to_ir import Floats, to_module
from stretto.ir.locations import from_location
from stretto.ir.module import Module, operations
from stretto.ir.operations import read
from stretto.passes.base import RemarkKind
from stretto.passes.normalize.lower_idioms import LowerIdioms
from stretto.passes.normalize.raise_idioms import RaiseIdioms

from ...executing import execute
from ..models import LAYERS, MODELS, captured, random_inputs
from .idioms.steps import assert_same, names

NORMS = 2 * LAYERS + 1
EXPECTED = {
    "gpt": {"attention": LAYERS, "layer_norm": NORMS, "cross_entropy": 1},
    "gpt2": {"attention": LAYERS, "layer_norm": NORMS, "cross_entropy": 1},
    "llama": {"attention": LAYERS, "rms_norm": NORMS, "rotary": 2 * LAYERS, "cross_entropy": 1},
}
"""How many of each idiom a model holds, and so how many backwards."""


def module_of(name: str) -> Module:
    return to_module(captured(name), floats=Floats.FLOAT64)


@pytest.mark.parametrize("name", MODELS)
def test_every_idiom_is_raised_with_its_backward_and_no_value_changes(name: str) -> None:
    step = captured(name)
    module = to_module(step, floats=Floats.FLOAT64)
    inputs = random_inputs(step)
    expected = execute(module, inputs)

    report = RaiseIdioms().run(module)
    module.verify()
    counts = {idiom: names(module).count(f"nn.{idiom}") for idiom in EXPECTED[name]}
    backwards = {idiom: names(module).count(f"nn.{idiom}_backward") for idiom in EXPECTED[name]}
    assert counts == backwards == EXPECTED[name]
    assert report.rewritten == 2 * sum(counts.values())
    assert all(remark.kind is RemarkKind.APPLIED for remark in report.remarks)
    assert_same(execute(module, inputs), expected)

    assert LowerIdioms().run(module).rewritten == report.rewritten
    module.verify()
    assert not any(name.startswith("nn.") for name in names(module))
    assert_same(execute(module, inputs), expected)


def test_nothing_is_left_of_the_chains_that_were_raised() -> None:
    module = module_of("llama")
    RaiseIdioms().run(module)
    chains = {"aten.rsqrt.default", "aten.neg.default", "aten.slice_backward.default", "aten._log_softmax.default"}
    assert not chains & set(names(module))


def test_raised_operations_keep_the_place_of_the_model_and_the_direction() -> None:
    module = module_of("llama")
    RaiseIdioms().run(module)
    origins = {}
    for op in operations(module.functions()["main"]):
        call = read(op)
        if call is not None and call.name.startswith("nn.rms_norm"):
            origins.setdefault(call.name, []).append(from_location(op.location))
    assert [o.module_path for o in origins["nn.rms_norm"]][-1] == "model.norm"
    assert not any(o.backward for o in origins["nn.rms_norm"])
    assert all(o.backward for o in origins["nn.rms_norm_backward"])


def test_the_same_module_is_raised_to_the_same_text() -> None:
    first, second = module_of("llama"), module_of("llama")
    RaiseIdioms().run(first)
    RaiseIdioms().run(second)
    assert str(first) == str(second)


def test_raising_again_changes_nothing() -> None:
    module = module_of("llama")
    RaiseIdioms().run(module)
    text = str(module)
    assert RaiseIdioms().run(module).rewritten == 0
    assert str(module) == text
