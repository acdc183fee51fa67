"""Input regimes reach what values near 1 do not, and decisions that took one side only are reported."""

from __future__ import annotations

import pytest
import torch
from stretto.driver.check.pass_check import CheckOptions
from stretto.driver.check.verify_passes import PassesJob, PassesReport, show_passes, verify_passes
from stretto.driver.ir_files.module_source import Source
from stretto.ir.equivalence.one_sided import Sides
from stretto.ir.equivalence.random_inputs import random_inputs
from stretto.ir.equivalence.regimes import OTHERS, Regime
from stretto.ir.interpreter import Floats, run
from stretto.ir.interpreter.code import decode
from stretto.ir.module import Module, operations
from stretto.passes.base import Pass, Report
from stretto.passes.manager import Step

MODULE = """func.func @main(%x: tensor<6x4xf32> {aten.argument = {kind = "input", name = "x"}}) -> tensor<6x4xf32> {
  %0 = "aten.gt_scalar"(%x) {other = 1.000000e+02 : f64} : (tensor<6x4xf32>) -> tensor<6x4xi1>
  %1 = "aten.neg_default"(%x) : (tensor<6x4xf32>) -> tensor<6x4xf32>
  %2 = "aten.where_self"(%0, %1, %x) : (tensor<6x4xi1>, tensor<6x4xf32>, tensor<6x4xf32>) -> tensor<6x4xf32>
  return %2 : tensor<6x4xf32>
}
"""


def values(regime: Regime, kind: str, shape: tuple[int, ...] = (64, 64), name: str = "weight") -> torch.Tensor:
    return regime.applied(kind, name, torch.randn(shape, dtype=torch.float64))


def test_each_regime_moves_inputs_and_parameters_as_it_says() -> None:
    assert values(Regime.LARGE, "input").abs().max() > 1e3
    assert values(Regime.TINY, "input").abs().max() < 1e-2
    assert values(Regime.NEGATIVE, "input").max() <= 0 and values(Regime.NEGATIVE, "parameter", name="bias").max() <= 0
    assert set(values(Regime.TIES, "input").unique().tolist()) == {-1, 0, 1}
    assert values(Regime.TIES, "parameter").unique().numel() < 64
    assert values(Regime.SATURATING, "parameter").std() > 6
    for regime, tall in (Regime.TALL_BELOW, -1), (Regime.WIDE_BELOW, 1):
        signs = {shape: int(values(regime, "parameter", shape).sign().unique()) for shape in ((9, 4), (4, 9))}
        assert signs == {(9, 4): tall, (4, 9): -tall}
        assert values(regime, "input").min() >= 0 and values(regime, "parameter", (64,), "bias").mean() > 100
    zeros = values(Regime.ZEROS, "input")
    assert not zeros[0].any() and not zeros[-1].any() and zeros[1].all()
    assert not values(Regime.ZEROS, "parameter", (8,), "bias").any() and values(Regime.ZEROS, "parameter").all()
    mask = Regime.HIDDEN_ROWS.applied("input", "keep", torch.rand(2, 3, 8) < 0.5).flatten(0, 1)
    assert not mask[0].any() and mask[-1].all()
    tangent = torch.randn(3, dtype=torch.float64)
    assert all(torch.equal(regime.applied("tangent", "", tangent), tangent) for regime in Regime)
    assert Regime.NORMAL not in OTHERS


def test_a_comparison_that_is_never_true_is_reported_until_a_regime_makes_it_true() -> None:
    module = Module.parse(MODULE)
    sides = Sides(decode(module))
    run(module, random_inputs(module, 0), floats=Floats.FLOAT64, observer=sides)
    assert [(found.op, found.never) for found in sides.one_sided()] == [("aten.gt.Scalar", "true")]
    large = random_inputs(module, 0, regime=Regime.LARGE)
    run(module, large, floats=Floats.FLOAT64, observer=sides)
    assert list(sides.one_sided()) == []


class WrongWhenLarge(Pass):
    """Swaps the sides of a selection whose condition values near 1 never meet."""

    name = "wrong-when-large"

    def run(self, module: Module) -> Report:
        for op in operations(module.functions()["main"]):
            if op.operation.name == "aten.neg_default":
                op.result.replace_all_uses_with(op.operands[0])
        return Report(1)


def report(step: Step, monkeypatch: pytest.MonkeyPatch) -> PassesReport:
    monkeypatch.setattr(Source, "steps", lambda self: [step])
    return verify_passes(PassesJob(Source(MODULE, "large.mlir", "of the test"), CheckOptions()))


def test_a_fault_that_only_large_inputs_show_is_found_with_its_pass_and_regime(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(WrongWhenLarge(), monkeypatch)
    assert not found.passed and found.regime is Regime.LARGE
    assert found.verdicts[-1].name == "wrong-when-large"
    show_passes(found)
    said = capsys.readouterr().out
    assert "with large inputs:" in said and '"wrong-when-large" is the first pass that changes values' in said


def test_a_right_pass_is_equal_in_all_regimes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report("cse", monkeypatch)
    assert found.passed and found.regimes == tuple(regime for regime in Regime if regime is not Regime.HIDDEN_ROWS)
    show_passes(found)
    assert "inputs: normal, large, tiny, negative, ties, saturating" in capsys.readouterr().out
