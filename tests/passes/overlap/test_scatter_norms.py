"""Why `fuse all_reduce+rms_norm` leaves a sum whole: the nearest miss, in a warning."""

from __future__ import annotations

import pytest
from stretto.dsl.plan import Plan
from stretto.ir.module import Module
from stretto.passes.base import RemarkKind
from stretto.passes.overlap.scatter_norms import ScatterNorms

SUM = '{axes = ["tp"], reduce = "sum"}'


def _norm(shape: str, rows: str) -> str:
    statistic = f"tensor<{rows}x1xf32>"
    return f'%2:2 = "nn.rms_norm"(%1, %w) {{eps = 1.0e-6 : f64}} : ({shape}, tensor<8xf32>) -> ({shape}, {statistic})\n'


@pytest.mark.parametrize(
    ("rows", "behind", "result", "why"),
    [
        ("3x5", "norm", "%2#0", "2 ranks divide none of its rows [3, 5]"),
        ("3x4", '%2 = "aten.neg_default"(%1) : (T) -> T', "%2", "rms_norm does not read it, but neg.default"),
        ("3x4", "norm", "%1, %2#0", "768 bytes would be gathered in place of sums of 384"),
    ],
)
def test_a_fusion_that_finds_nothing_warns_with_the_nearest_miss(rows: str, behind: str, result: str, why: str) -> None:
    whole = f"tensor<{rows}x8xf32>"
    partial = f'tensor<{rows}x8xf32, {{tp = "partial(sum)"}}>'
    body = _norm(whole, rows) if behind == "norm" else behind.replace("T", whole)
    results = ", ".join([whole] * len(result.split(", ")))
    module = Module.parse(
        f"""module attributes {{comm.level = "comm", comm.mesh = [["tp", 2]]}} {{
        func.func @main(%z: {partial}, %w: tensor<8xf32>) -> ({results}) {{
          %1 = "comm.all_reduce"(%z) {SUM} : ({partial}) -> {whole}
          {body}
          return {result} : {results}
        }} }}"""
    )
    plan = Plan.parse("mesh (tp=2)\noverlap { fuse all_reduce+rms_norm }")
    report = ScatterNorms(plan).run(module)
    [warning] = [remark for remark in report.remarks if remark.kind is RemarkKind.WARNING]
    assert report.rewritten == 0 and warning.span is not None
    assert warning.message.startswith('"all_reduce+rms_norm" fuses nothing: all_reduce over tp stays whole: ')
    assert why in warning.message
