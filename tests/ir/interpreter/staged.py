"""One small training step as text, in the states of `ir/pipelined_module.py`: two stages, two microbatches.

`loss = sum((x w0 w1)^2)`, with its gradients; x is (8, 4), of which a data-parallel rank holds four rows, and a
microbatch two of them.
"""

from __future__ import annotations

import json

from stretto.ir.module import Module

from .texts import at

ALL = (("dp", 2), ("pp", 2), ("microbatch", 2))
W = "tensor<4x4xf32>"
S = "tensor<f32>"
_BOTH = 'dp = "shard(0)", microbatch = "shard(0)"'
X = 'tensor<4x4xf32, {dp = "shard(0)"}>'
"""What a rank holds of the whole batch."""
PART = f"tensor<2x4xf32, {{{_BOTH}}}>"
"""What it holds of one microbatch."""
_SHARES = 'dp = "partial(sum)", microbatch = "partial(sum)"'
TURNED = PART.replace("2x4", "4x2").replace("shard(0)", "shard(1)")
WG = f"tensor<4x4xf32, {{{_SHARES}}}>"
SG = f"tensor<f32, {{{_SHARES}}}>"


def _located(text: str) -> str:
    """The text with a place in the model for each operation."""
    lines = enumerate(text.splitlines())
    return "\n".join(f"{line} {at('block', number)}" if '= "aten' in line else line for number, line in lines)


SEGMENTS = _located(f"""
func.func private @forward_0(%x: {PART}, %w0: {W}) -> {PART} {{
  %h = "aten.mm_default"(%x, %w0) : ({PART}, {W}) -> {PART}
  return %h : {PART}
}}
func.func private @forward_1(%h: {PART}, %w1: {W}) -> ({PART}, {SG}) {{
  %y = "aten.mm_default"(%h, %w1) : ({PART}, {W}) -> {PART}
  %s = "aten.mul_tensor"(%y, %y) : ({PART}, {PART}) -> {PART}
  %l = "aten.sum_default"(%s) : ({PART}) -> {SG}
  return %y, %l : {PART}, {SG}
}}
func.func private @input_gradient_1(%y: {PART}, %w1: {W}, %t: {S}) -> ({PART}, {PART}) {{
  %0 = "aten.mul_tensor"(%y, %t) : ({PART}, {S}) -> {PART}
  %gy = "aten.add_tensor"(%0, %0) : ({PART}, {PART}) -> {PART}
  %1 = "aten.t_default"(%w1) : ({W}) -> {W}
  %gh = "aten.mm_default"(%gy, %1) : ({PART}, {W}) -> {PART}
  return %gy, %gh : {PART}, {PART}
}}
func.func private @weight_gradient_1(%h: {PART}, %gy: {PART}) -> {WG} {{
  %0 = "aten.t_default"(%h) : ({PART}) -> {TURNED}
  %g = "aten.mm_default"(%0, %gy) : ({TURNED}, {PART}) -> {WG}
  return %g : {WG}
}}
func.func private @backward_0(%x: {PART}, %gh: {PART}) -> {WG} {{
  %0 = "aten.t_default"(%x) : ({PART}) -> {TURNED}
  %g = "aten.mm_default"(%0, %gh) : ({TURNED}, {PART}) -> {WG}
  return %g : {WG}
}}
""")
_ARGUMENTS = {
    "w0": {"kind": "parameter", "name": "w0", "index": -1},
    "w1": {"kind": "parameter", "name": "w1", "index": -1},
    "x": {"kind": "input", "name": "x", "index": 0},
    "t": {"kind": "tangent", "name": "tangent", "index": 0},
}
_RESULTS = {
    "loss": {"kind": "output", "name": "loss", "index": 0},
    "g0": {"kind": "gradient", "name": "w0", "index": 0},
    "g1": {"kind": "gradient", "name": "w1", "index": 1},
}


def _record(record: dict[str, object], order: int | None) -> str:
    pairs = record if order is None else record | {"order": order}
    inside = ", ".join(f"{key} = {json.dumps(value)}" for key, value in pairs.items())
    return f"{{aten.argument = {{{inside}}}}}"


def _taken(name: str, type_: str, is_ordered: bool) -> str:
    order = list(_ARGUMENTS).index(name) if is_ordered else None
    return f"%{name}: {type_} {_record(_ARGUMENTS[name], order)}"


def _given(name: str, type_: str, is_ordered: bool) -> str:
    order = list(_RESULTS).index(name) if is_ordered else None
    return f"{type_} {_record(_RESULTS[name], order)}"


def _module(attributes: str, functions: str) -> Module:
    return Module.parse(f"module attributes {{{attributes}}} {{ {functions} }}")


def _mesh(mesh: tuple[tuple[str, int], ...]) -> str:
    return json.dumps([list(axis) for axis in mesh])


def function(name: str, takes: dict[str, str], gives: dict[str, str], body: str, *, is_ordered: bool = True) -> str:
    """An entry's text; `takes` and `gives` have the type of each argument and result by name."""
    arguments = ", ".join(_taken(each, type_, is_ordered) for each, type_ in takes.items())
    results = ", ".join(_given(each, type_, is_ordered) for each, type_ in gives.items())
    return f"func.func @{name}({arguments}) -> ({results}) {{\n{body}\n}}"


def captured() -> Module:
    """The whole step on one device."""
    x = "tensor<8x4xf32>"
    body = f"""
      %h = "aten.mm_default"(%x, %w0) : ({x}, {W}) -> {x}
      %y = "aten.mm_default"(%h, %w1) : ({x}, {W}) -> {x}
      %s = "aten.mul_tensor"(%y, %y) : ({x}, {x}) -> {x}
      %loss = "aten.sum_default"(%s) : ({x}) -> {S}
      %0 = "aten.mul_tensor"(%y, %t) : ({x}, {S}) -> {x}
      %gy = "aten.add_tensor"(%0, %0) : ({x}, {x}) -> {x}
      %1 = "aten.t_default"(%w1) : ({W}) -> {W}
      %gh = "aten.mm_default"(%gy, %1) : ({x}, {W}) -> {x}
      %2 = "aten.t_default"(%h) : ({x}) -> tensor<4x8xf32>
      %g1 = "aten.mm_default"(%2, %gy) : (tensor<4x8xf32>, {x}) -> {W}
      %3 = "aten.t_default"(%x) : ({x}) -> tensor<4x8xf32>
      %g0 = "aten.mm_default"(%3, %gh) : (tensor<4x8xf32>, {x}) -> {W}
      return %loss, %g0, %g1 : {S}, {W}, {W}"""
    arguments = {"w0": W, "w1": W, "x": x, "t": S}
    main = function("main", arguments, {"loss": S, "g0": W, "g1": W}, body, is_ordered=False)
    return _module('comm.level = "aten"', main)


def in_segments(segments: str = SEGMENTS) -> Module:
    """State 2: every task is one of each microbatch, and sums over time are collectives."""
    axes = '{axes = ["dp", "microbatch"], reduce = "sum"}'
    body = f"""
      %h = func.call @forward_0(%x, %w0) : ({PART}, {W}) -> {PART}
      %y, %l = func.call @forward_1(%h, %w1) : ({PART}, {W}) -> ({PART}, {SG})
      %gy, %gh = func.call @input_gradient_1(%y, %w1, %t) : ({PART}, {W}, {S}) -> ({PART}, {PART})
      %a1 = func.call @weight_gradient_1(%h, %gy) : ({PART}, {PART}) -> {WG}
      %a0 = func.call @backward_0(%x, %gh) : ({PART}, {PART}) -> {WG}
      %loss = "comm.all_reduce"(%l) {axes} : ({SG}) -> {S}
      %g0 = "comm.all_reduce"(%a0) {axes} : ({WG}) -> {W}
      %g1 = "comm.all_reduce"(%a1) {axes} : ({WG}) -> {W}
      return %loss, %g0, %g1 : {S}, {W}, {W}"""
    arguments = {"w0": W, "w1": W, "x": PART, "t": S}
    main = function("main", arguments, {"loss": S, "g0": W, "g1": W}, body, is_ordered=False)
    return _module(f'comm.level = "comm", comm.mesh = {_mesh(ALL)}', main + segments)


def send(name: str, peer: int, type_: str = PART) -> str:
    """A send to the other stage."""
    return f'"comm.send"(%{name}) {{axis = "pp", peer = {peer} : i64}} : ({type_}) -> ()'


def receive(peer: int, type_: str = PART, size: str = "2, 4") -> str:
    """A receive from the other stage."""
    extents = f"array<i64: {size}>" if size else "[]"
    constants = f'{{axis = "pp", peer = {peer} : i64, size = {extents}, dtype = f32}}'
    return f'"comm.receive"() {constants} : () -> {type_}'


def _slice(start: int) -> str:
    bounds = f"dim = 0 : i64, start = {start} : i64, end = {start + 2} : i64, step = 1 : i64"
    return f'"aten.slice_tensor"(%x) {{{bounds}}} : ({X}) -> {PART}'


def _reduced(name: str, given: str, made: str) -> str:
    return f"""
      %{name}_sum = "aten.add_tensor"(%{name}_0, %{name}_1) : ({given}, {given}) -> {given}
      %{name} = "comm.all_reduce"(%{name}_sum) {{axes = ["dp"], reduce = "sum"}} : ({given}) -> {made}"""


FIRST = [
    f"%x0 = {_slice(0)}",
    f"%h0 = func.call @forward_0(%x0, %w0) {{microbatch = 0 : i64}} : ({PART}, {W}) -> {PART}",
    send("h0", 1),
    f"%x1 = {_slice(2)}",
    f"%h1 = func.call @forward_0(%x1, %w0) {{microbatch = 1 : i64}} : ({PART}, {W}) -> {PART}",
    send("h1", 1),
    f"%gh0 = {receive(1)}",
    f"%g0_0 = func.call @backward_0(%x0, %gh0) {{microbatch = 0 : i64}} : ({PART}, {PART}) -> {WG}",
    f"%gh1 = {receive(1)}",
    f"%g0_1 = func.call @backward_0(%x1, %gh1) {{microbatch = 1 : i64}} : ({PART}, {PART}) -> {WG}",
    _reduced("g0", WG, W),
    f"%loss = {receive(1, S, '')}",
    f"return %loss, %g0 : {S}, {W}",
]
"""What stage 0 does, an operation each."""


def _tasks(m: int) -> list[str]:
    about = f"{{microbatch = {m} : i64}}"
    return [
        f"%h{m} = {receive(0)}",
        f"%y{m}, %loss_{m} = func.call @forward_1(%h{m}, %w1) {about} : ({PART}, {W}) -> ({PART}, {SG})",
        f"%gy{m}, %gh{m} = func.call @input_gradient_1(%y{m}, %w1, %t) {about} "
        f": ({PART}, {W}, {S}) -> ({PART}, {PART})",
        send(f"gh{m}", 0),
        f"%g1_{m} = func.call @weight_gradient_1(%h{m}, %gy{m}) {about} : ({PART}, {PART}) -> {WG}",
    ]


SECOND = [
    *_tasks(0),
    *_tasks(1),
    _reduced("loss", SG, S),
    _reduced("g1", WG, W),
    send("loss", 0, S),
    f"return %loss, %g1 : {S}, {W}",
]
"""What stage 1 does."""


def in_order(first: list[str] = FIRST, second: list[str] = SECOND, segments: str = SEGMENTS) -> Module:
    """State 3: an entry for each stage."""
    entries = [
        function("main_0", {"w0": W, "x": X}, {"loss": S, "g0": W}, "\n".join(first)),
        function("main_1", {"w1": W, "t": S}, {"loss": S, "g1": W}, "\n".join(second)),
    ]
    attributes = f'comm.level = "comm", comm.mesh = {_mesh(ALL)}, comm.pipeline = "pp"'
    return _module(attributes, "\n".join(entries) + segments)
