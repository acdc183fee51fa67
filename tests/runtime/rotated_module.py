"""Layers whose communication is rotated: what one layer's body starts, the next one's waits for. Written by hand.

`weights(n)` are stored cut by rows over tp, and those chunks over dp. A body starts the gather of the next layer's
weight, waits for its own and for the sum over tp that the last body started, and starts the sum of its own product:

    y = x @ w0;  y = relu(y) @ w;  ..
"""

from __future__ import annotations

import torch
from stretto.backends.program.lower_program import lower_program
from stretto.ir.module import Module
from stretto.runtime.program.program import Manifest, Program
from torch import Tensor

X, PARTIAL, COLUMNS = (
    f"tensor<2x{columns}xf64, {{{placement}}}>"
    for columns, placement in ((8, 'dp = "shard(0)"'), (8, 'dp = "shard(0)", tp = "partial(sum)"'),
                               (4, 'dp = "shard(0)", tp = "shard(1)"'))
)  # fmt: skip
STORED = 'tensor<2x8xf64, {dp = "shard(0, 1)", tp = "shard(0, 0)"}>'
WEIGHT = 'tensor<4x8xf64, {tp = "shard(0)"}>'
FUTURE_X, FUTURE_W = f"!async.value<{X}>", f"!async.value<{WEIGHT}>"


def _at(line: int) -> str:
    return f'loc(fused<{{backward = false}}>["layers.*", "model.py":{line}:0])'


_PRODUCT = f"""
  %c = "comm.shard"(%x) {{axes = ["tp"], dim = 1 : i64, chunk = 4 : i64}} : ({X}) -> {COLUMNS} {_at(13)}
  %p = "aten.mm_default"(%c, %w) : ({COLUMNS}, {WEIGHT}) -> {PARTIAL} {_at(14)}
  %s = "comm.all_reduce_start"(%p) {{axes = ["tp"], reduce = "sum"}} : ({PARTIAL}) -> {FUTURE_X} {_at(15)}
"""


def text(layers: int) -> str:
    """The module, of at least two layers."""
    names = ", ".join(
        f'%w{i}: {STORED} {{aten.argument = {{kind = "parameter", name = "w{i}", index = -1 : i64}}}}'
        for i in range(layers)
    )
    calls = "\n".join(
        f"  %y{i + 1}, %f{i + 1} = func.call @body(%y{i}, %f{i}, %w{i + 1}) : "
        f"({FUTURE_X}, {FUTURE_W}, {STORED}) -> ({FUTURE_X}, {FUTURE_W}) {_at(20 + i)}"
        for i in range(1, layers - 1)
    )
    last = layers - 1
    gather = '"comm.all_gather_start"({}) {{axes = ["dp"], dim = 0 : i64}} : ({}) -> {} {}'
    return f"""module attributes {{comm.level = "comm", comm.mesh = [["dp", 2], ["tp", 2]]}} {{
func.func @main(%x: {X} {{aten.argument = {{kind = "input", name = "x", index = 0 : i64}}}}, {names})
    -> ({X} {{aten.argument = {{kind = "output", name = "", index = 0 : i64}}}}) {{
  %f0 = {gather.format("%w0", STORED, FUTURE_W, _at(1))}
  %f1 = {gather.format("%w1", STORED, FUTURE_W, _at(2))}
  %y1 = func.call @first(%x, %f0) : ({X}, {FUTURE_W}) -> {FUTURE_X} {_at(20)}
{calls}
  %y{layers} = func.call @last(%y{last}, %f{last}) : ({FUTURE_X}, {FUTURE_W}) -> {FUTURE_X} {_at(30)}
  %y = "comm.wait"(%y{layers}) : ({FUTURE_X}) -> {X} {_at(31)}
  return %y : {X}
}}
func.func private @first(%x: {X}, %f: {FUTURE_W}) -> {FUTURE_X} {{
  %w = "comm.wait"(%f) : ({FUTURE_W}) -> {WEIGHT} {_at(12)}
{_PRODUCT}
  return %s : {FUTURE_X}
}}
func.func private @body(%y: {FUTURE_X}, %f: {FUTURE_W}, %next: {STORED}) -> ({FUTURE_X}, {FUTURE_W}) {{
  %g = {gather.format("%next", STORED, FUTURE_W, _at(10))}
  %r = "comm.wait"(%y) : ({FUTURE_X}) -> {X} {_at(11)}
  %x = "aten.relu_default"(%r) : ({X}) -> {X} {_at(11)}
  %w = "comm.wait"(%f) : ({FUTURE_W}) -> {WEIGHT} {_at(12)}
{_PRODUCT}
  return %s, %g : {FUTURE_X}, {FUTURE_W}
}}
func.func private @last(%y: {FUTURE_X}, %f: {FUTURE_W}) -> {FUTURE_X} {{
  %r = "comm.wait"(%y) : ({FUTURE_X}) -> {X} {_at(11)}
  %x = "aten.relu_default"(%r) : ({X}) -> {X} {_at(11)}
  %w = "comm.wait"(%f) : ({FUTURE_W}) -> {WEIGHT} {_at(12)}
{_PRODUCT}
  return %s : {FUTURE_X}
}}
}}"""


def lowered(module: Module) -> Program:
    """The program of a module."""
    parts = lower_program(module)
    return Program(
        Manifest("infer", "float64", parts.mesh),
        parts.inputs,
        parts.outputs,
        parts.functions,
        parts.locations,
        pipeline=parts.pipeline,
        types=parts.types,
    )


def rotated(layers: int) -> Program:
    """The program of the rotated layers."""
    return lowered(Module.parse(text(layers)))


def tensors(layers: int) -> list[Tensor]:
    """The input and the weights, all whole."""
    random = torch.Generator().manual_seed(0)
    shapes = [(4, 8)] + [(8, 8)] * layers
    return [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]


def expected(given: list[Tensor]) -> Tensor:
    """The result, on one device."""
    x, first, *others = given
    y = x @ first
    for weight in others:
        y = y.relu() @ weight
    return y


RECEIVED = "!async.value<tensor<4xf64>>"
RECEIVE = (
    f'"comm.receive_start"() {{axis = "pp", peer = 0 : i64, size = array<i64: 4>, dtype = f64}} : () -> {RECEIVED}'
)


def staged() -> Module:
    """Two stages. The second starts its receives before its tasks, which wait for them inside: y = -x, summed."""
    x = 'tensor<4xf64> {aten.argument = {kind = "input", name = "x", index = 0 : i64, order = 0 : i64}}'
    y = 'tensor<4xf64> {aten.argument = {kind = "output", name = "", index = 0 : i64, order = 0 : i64}}'
    return Module.parse(f"""
module attributes {{comm.level = "comm", comm.mesh = [["pp", 2], ["microbatch", 2]], comm.pipeline = "pp"}} {{
func.func @main_0(%x: {x}) {{
  %0 = func.call @negative(%x) {{microbatch = 0 : i64}} : (tensor<4xf64>) -> tensor<4xf64>
  "comm.send"(%0) {{axis = "pp", peer = 1 : i64}} : (tensor<4xf64>) -> ()
  %1 = func.call @negative(%x) {{microbatch = 1 : i64}} : (tensor<4xf64>) -> tensor<4xf64>
  "comm.send"(%1) {{axis = "pp", peer = 1 : i64}} : (tensor<4xf64>) -> ()
  return
}}
func.func @main_1() -> ({y}) {{
  %a = {RECEIVE}
  %b = {RECEIVE}
  %0 = func.call @taken(%a) {{microbatch = 0 : i64}} : ({RECEIVED}) -> tensor<4xf64>
  %1 = func.call @taken(%b) {{microbatch = 1 : i64}} : ({RECEIVED}) -> tensor<4xf64>
  %2 = "aten.add_tensor"(%0, %1) : (tensor<4xf64>, tensor<4xf64>) -> tensor<4xf64>
  return %2 : tensor<4xf64>
}}
func.func private @negative(%x: tensor<4xf64>) -> tensor<4xf64> {{
  %0 = "aten.neg_default"(%x) : (tensor<4xf64>) -> tensor<4xf64>
  return %0 : tensor<4xf64>
}}
func.func private @taken(%f: {RECEIVED}) -> tensor<4xf64> {{
  %0 = "comm.wait"(%f) : ({RECEIVED}) -> tensor<4xf64>
  return %0 : tensor<4xf64>
}}
}}""")
