"""The interpreter draws by itself, and what it draws is what the runtime draws."""

from __future__ import annotations

import pytest
import torch
from stretto.diagnostics import StrettoError
from stretto.ir.equivalence import random_inputs
from stretto.ir.interpreter import run
from stretto.ir.module import Module
from stretto.ir.verifier import verify
from stretto.runtime.philox import Part, RngState, draw

_STATE = 'tensor<2xi64> {aten.argument = {kind = "random", name = "random state", index = -1 : i64}}'
_NUMBER = '%n = "aten.scalar_tensor_default"() {s = 7 : i64, dtype = i64} : () -> tensor<i64>\n'
_OPERANDS = "operandSegmentSizes = array<i32: 1, 1, 0>"


def _whole(attributes: str, type_: str) -> Module:
    body = f'%y = "nn.random"(%s, %n) {{{_OPERANDS}, {attributes}}} : (tensor<2xi64>, tensor<i64>) -> {type_}'
    return _module(body, type_, 'comm.level = "aten", comm.mesh = []')


def _part(attributes: str, type_: str) -> Module:
    body = f'%y = "comm.random"(%s, %n) {{{attributes}}} : (tensor<2xi64>, tensor<i64>) -> {type_}'
    return _module(body, type_, 'comm.level = "comm", comm.mesh = [["dp", 2], ["tp", 3]]')


def _module(body: str, type_: str, attributes: str) -> Module:
    text = f"module attributes {{{attributes}}} {{\nfunc.func @main(%s: {_STATE}) -> {type_} {{\n{_NUMBER}{body}\n"
    return Module.parse(f"{text}return %y : {type_} }} }}")


@pytest.mark.parametrize("state", [RngState(3, 8), RngState(2**64 - 5, 2**31)])
def test_random_words_equal_those_of_the_runtime(state: RngState) -> None:
    part = Part.whole((3, 7))
    [actual] = run(_whole("size = array<i64: 3, 7>", "tensor<3x7xi64>"), [state.tensor()])
    assert torch.equal(actual, draw(state.tensor(), 7, part))
    [mask] = run(_whole("size = array<i64: 3, 7>, below = 2000000000 : i64", "tensor<3x7xi1>"), [state.tensor()])
    assert torch.equal(mask, draw(state.tensor(), 7, part, 2000000000))


def test_the_parts_of_all_ranks_make_the_whole_uneven_ones_too() -> None:
    type_ = 'tensor<2x4xi1, {dp = "shard(1)", extents = array<i64: 5, 7>, tp = "shard(0)"}>'
    sizes = 'size = array<i64: 5, 7>, axes = ["tp", "dp"], chunks = array<i64: 2, 4>'
    state = RngState(1, 2).tensor()
    [actual] = run(_part(f"{sizes}, below = 3000000000 : i64", type_), [state])
    assert torch.equal(actual, draw(state, 7, Part.whole((5, 7)), 3000000000))


def test_inputs_for_a_comparison_hold_a_state() -> None:
    [state] = random_inputs(_whole("size = array<i64: 4>", "tensor<4xi64>"), seed=6)
    assert state.tolist() == [6, 3]  # a later step than the first, whose number is that of nothing


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ('size = array<i64: 6>, axes = ["pp"], chunks = array<i64: 3>', 'no axis "pp"'),
        ('size = array<i64: 6>, axes = ["tp"], chunks = array<i64: 3>', "is 2, not 3"),
        ('size = array<i64: 6>, axes = ["dp", "tp"], chunks = array<i64: 3>', "differ in length"),
        ('size = array<i64: 4>, axes = ["dp"], chunks = array<i64: 2>', r"must have shape \[2\], not \[3\]"),
        ('size = "6", axes = ["dp"], chunks = array<i64: 3>', "lists of"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(attributes: str, says: str) -> None:
    with pytest.raises(StrettoError, match=says) as caught:
        verify(_part(attributes, 'tensor<3xi64, {dp = "shard(0)"}>'))
    assert caught.value.code == "E0505"
