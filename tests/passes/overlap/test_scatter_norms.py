"""Why `fuse all_reduce+rms_norm` leaves a sum whole: the nearest miss, in a warning."""

from __future__ import annotations

import pytest
from stretto.dsl.plan import Plan
from stretto.ir.equivalence import compare
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
        ("3x4", "norm", "%1, %2#0", "768 bytes would be gathered in place of 384"),
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


ROWS, PART, GRAD = (
    "tensor<2x4x8xf32>",
    'tensor<2x4x8xf32, {tp = "partial(sum)"}>',
    'tensor<8xf32, {tp = "partial(sum)"}>',
)
STATISTIC = "tensor<2x4x1xf32>"
FORWARD = f"""%1 = "comm.all_reduce"(%z) {SUM} : ({PART}) -> {ROWS}
%h = "aten.add_tensor"(%x, %1) : ({ROWS}, {ROWS}) -> {ROWS}
%n:2 = "nn.rms_norm"(%h, %w) {{eps = 1.0e-6 : f64}} : ({ROWS}, tensor<8xf32>) -> ({ROWS}, {STATISTIC})
"""


def _compared(body: str, results: str, types: str, arguments: str = "") -> tuple[str, int]:
    """The text after the pass, whose values are those before it, and how many sums it scattered."""
    text = f"""module attributes {{comm.level = "comm", comm.mesh = [["tp", 2]]}} {{
      func.func @main(%x: {ROWS}, %z: {PART}, %g: {PART}, %w: tensor<8xf32>{arguments}) -> ({types}) {{
        {body}
        return {results} : {types}
      }} }}"""
    before, after = Module.parse(text), Module.parse(text)
    report = ScatterNorms(Plan.parse("mesh (tp=2)\noverlap { fuse all_reduce+rms_norm }")).run(after)
    assert after.operation.verify() and compare(before, after).is_equal
    return str(after), report.rewritten


def test_a_partial_sum_that_a_norms_backward_takes_is_scattered_before_it() -> None:
    body = f"""{FORWARD}
    %b:2 = "nn.rms_norm_backward"(%g, %h, %n#1, %w) : ({PART}, {ROWS}, {STATISTIC}, tensor<8xf32>) -> ({PART}, {GRAD})
    %d = "comm.all_reduce"(%b#0) {SUM} : ({PART}) -> {ROWS}
    %e = "comm.all_reduce"(%b#1) {SUM} : ({GRAD}) -> tensor<8xf32>"""
    text, count = _compared(body, "%n#0, %d, %e", f"{ROWS}, {ROWS}, tensor<8xf32>")
    assert count == 1 and text.count('"comm.reduce_scatter"') == 2 and text.count('"comm.all_reduce"') == 1


def test_what_differs_by_rank_is_not_cut() -> None:
    body = f"""{FORWARD}
    %o = "comm.offset"() {{axes = ["tp"], chunk = 4 : i64}} : () -> tensor<i64>
    %m = "aten.mul_tensor"(%n#0, %o) : ({ROWS}, tensor<i64>) -> {ROWS}
    %s = "comm.all_reduce"(%m) {SUM} : ({ROWS}) -> {ROWS}"""
    text, count = _compared(body, "%s", ROWS)
    assert count == 1 and text.index('"comm.all_gather"') < text.index('"aten.mul_tensor"')
