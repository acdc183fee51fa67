"""Modules from files: their places, and that no text, however broken, ends in anything but an error of Stretto's."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stretto.diagnostics import StrettoError
from stretto.ir.module import Module
from stretto.ir.source_text import read_module, without_locations

TEXT = Module.parse("""
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>) -> (tensor<2xf32, {tp = "shard(0)"}>) {
  %0 = "comm.reduce_scatter"(%x) {axes = ["tp"], dim = 0 : i64, reduce = "sum"}
    : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<2xf32, {tp = "shard(0)"}> loc(fused["a.b(c)", "model.py":3:0])
  %1 = "aten.neg_default"(%0) : (tensor<2xf32, {tp = "shard(0)"}>) -> tensor<2xf32, {tp = "shard(0)"}> loc("loc(")
  return %1 : tensor<2xf32, {tp = "shard(0)"}>
}
}
""").text()
TOKENS = re.findall(r'"[^"]*"|\w+|\s+|.', TEXT)
OTHERS = ["", "7", "-1", '"pp"', "unit", "loc(", '"', "99999999999999999999", "tensor<4xf16>", "{}", "0.5", "\0", "é"]


def test_without_locations_the_same_module_stands_in_the_same_columns() -> None:
    bare = without_locations(TEXT)
    assert "loc(" not in bare and len(bare) == len(TEXT) and bare.count("\n") == TEXT.count("\n")
    assert str(Module.parse(bare)) == str(Module.parse(TEXT))
    assert bare.index("comm.reduce_scatter") == TEXT.index("comm.reduce_scatter")


@given(st.lists(st.tuples(st.integers(0, len(TOKENS) - 1), st.sampled_from([*OTHERS, *TOKENS])), max_size=3))
@settings(max_examples=150, deadline=None)
def test_a_broken_module_is_read_or_refused(changes: list[tuple[int, str]]) -> None:
    tokens = list(TOKENS)
    for index, token in changes:
        tokens[index] = token
    try:
        read_module("".join(tokens), "f.mlir")
    except StrettoError as error:
        assert error.code in ("E0504", "E0505", "E0506")


@pytest.mark.parametrize("text", ["", "\0", "{", "}" * 9, "(" * 5000, '"' * 99, "é" * 9, "loc(" * 99])
def test_what_is_no_module_is_refused(text: str) -> None:
    with pytest.raises(StrettoError):
        read_module(text, "f.mlir")
