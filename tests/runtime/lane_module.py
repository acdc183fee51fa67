"""A module whose operations name lanes: two branches beside each other, and a lane for each communicator.

y = sum over tp of x, + exp(x);  z = tanh(-x @ w gathered over dp);  result y + z, where the lanes meet
"""

from __future__ import annotations

import torch
from stretto.ir.module import Module
from torch import Tensor

X = 'tensor<2x8xf64, {dp = "shard(0)"}>'
PARTIAL = 'tensor<2x8xf64, {dp = "shard(0)", tp = "partial(sum)"}>'
STORED, WHOLE = 'tensor<4x8xf64, {dp = "shard(0)"}>', "tensor<8x8xf64>"


def _at(line: int) -> str:
    return f'loc(fused<{{backward = false}}>["layers.0", "model.py":{line}:0])'


def text() -> str:
    """The module."""
    return f"""module attributes {{comm.level = "comm", comm.mesh = [["dp", 2], ["tp", 2]]}} {{
func.func @main(%x: {X} {{aten.argument = {{kind = "input", name = "x", index = 0 : i64}}}},
                %w: {STORED} {{aten.argument = {{kind = "parameter", name = "w", index = -1 : i64}}}})
    -> ({X} {{aten.argument = {{kind = "output", name = "", index = 0 : i64}}}}) {{
  %h = "aten.mul_scalar"(%x) {{other = 5.000000e-01 : f64}} : ({X}) -> {PARTIAL} {_at(1)}
  %g = "comm.all_gather_start"(%w) {{axes = ["dp"], dim = 0 : i64, lane = "comm.dp"}}
      : ({STORED}) -> !async.value<{WHOLE}> {_at(2)}
  %s = "comm.all_reduce_start"(%h) {{axes = ["tp"], reduce = "sum", lane = "comm.tp"}}
      : ({PARTIAL}) -> !async.value<{X}> {_at(3)}
  %e = "aten.exp_default"(%x) : ({X}) -> {X} {_at(4)}
  %n = "aten.neg_default"(%e) {{lane = "aux"}} : ({X}) -> {X} {_at(5)}
  %v = "aten.view_default"(%n) {{size = array<i64: 2, 8>, lane = "aux"}} : ({X}) -> {X} {_at(6)}
  %wg = "comm.wait"(%g) {{lane = "aux"}} : (!async.value<{WHOLE}>) -> {WHOLE} {_at(7)}
  %m = "aten.mm_default"(%v, %wg) {{lane = "aux"}} : ({X}, {WHOLE}) -> {X} {_at(8)}
  %t = "aten.tanh_default"(%m) {{lane = "aux"}} : ({X}) -> {X} {_at(9)}
  %r = "comm.wait"(%s) : (!async.value<{X}>) -> {X} {_at(10)}
  %a = "aten.add_tensor"(%r, %e) : ({X}, {X}) -> {X} {_at(11)}
  %b = "aten.add_tensor"(%a, %t) : ({X}, {X}) -> {X} {_at(12)}
  %c = "aten.exp_default"(%b) : ({X}) -> {X} {_at(13)}
  return %c : {X}
}}
}}"""


def module() -> Module:
    """The module, parsed."""
    return Module.parse(text())


def tensors() -> list[Tensor]:
    """The input and the weight, both whole."""
    random = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((4, 8), (8, 8))]


def expected(given: list[Tensor]) -> Tensor:
    """The result, on one device."""
    x, w = given
    e = x.exp()
    return (x + e + (-e @ w).tanh()).exp()
