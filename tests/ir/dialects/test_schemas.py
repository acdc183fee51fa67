"""The operations that exist: generated from torch's schemas, each with a name of its own in MLIR text."""

from __future__ import annotations

import re

import pytest
import torch
from stretto.ir.bindings import mlir
from stretto.ir.dialects.comm import COLLECTIVES
from stretto.ir.dialects.context import context
from stretto.ir.dialects.schemas import Kind, by_mlir_name, definitions, mlir_name
from stretto.ir.module import Module, build_function, entry, finish_function, operations
from stretto.ir.operations import Call, build, read, results_of
from stretto.ir.types import TensorType, absent, to_mlir

X = to_mlir(TensorType(torch.float32, (4, 6)))
MLIR_NAME = re.compile(r"(aten|nn|comm|transformers|stretto)\.[a-z0-9]+(_[a-z0-9]+)*|custom_[a-z0-9_]+\.call")


def test_every_name_is_one_that_mlir_takes() -> None:
    assert [d.mlir_name for d in definitions().values() if not MLIR_NAME.fullmatch(d.mlir_name)] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("aten._softmax.default", "aten.u_softmax_default"),
        ("aten.sum.dim_IntList", "aten.sum_dim_intlist"),
        ("aten.where.ScalarOther", "aten.where_scalarother"),
        ("nn.rms_norm", "nn.rms_norm"),
    ],
)
def test_names_are_mangled_by_rule(name: str, text: str) -> None:
    assert mlir_name(name) == text
    assert by_mlir_name()[text].name == name


def test_collectives_can_be_started_and_only_what_starts_waits_or_transfers_is_impure() -> None:
    assert all(f"{name}_start" in definitions() for name in COLLECTIVES)
    impure = {d.name for d in definitions().values() if not d.pure}
    transfers = {"comm.send", "comm.receive", "comm.receive_start"}
    assert impure == {*(f"{name}_start" for name in COLLECTIVES), "comm.wait", *transfers}


def test_what_mutates_or_writes_to_a_given_tensor_is_no_operation() -> None:
    assert not {"aten.add_.Tensor", "aten.copy_.default", "aten.add.out"} & set(definitions())


CALLS = {
    "a list of tensors": (Call("aten.cat.default", ([0, 1], 1)), [to_mlir(TensorType(torch.float32, (4, 12)))]),
    "tensors of different types": (Call("aten.cat.default", ([0, 2], 0)), [to_mlir(TensorType(torch.float32, (9, 6)))]),
    "a list with holes": (Call("aten.index.Tensor", (0, [None, 3])), [to_mlir(TensorType(torch.float32, (4, 3)))]),
    "an optional tensor": (Call("aten.native_layer_norm.default", (0, [6], None, 4, 1e-5)), [X, X, X]),
    "no optional tensors": (Call("aten.native_layer_norm.default", (0, [6], None, None, 1e-5)), [X, X, X]),
    "results that are lists": (
        Call("aten.split.Tensor", (0, 3, 1)),
        [[to_mlir(TensorType(torch.float32, (4, 3)))] * 2],
    ),
    "results that are absent": (Call("aten.native_layer_norm.default", (0, [6], 4, None, 1e-5)), [X, absent(), X]),
    "keywords": (Call("aten.sum.dim_IntList", (0, [1], True), {"dtype": torch.float64}), [X]),
    "axes": (Call("comm.reduce_scatter", (0, ["dp", "tp"], 1, "sum")), [X]),
    "nothing": (Call("comm.offset", (["tp"], 3)), [to_mlir(TensorType(torch.int64, ()))]),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_is_read_back_as_it_was_built(case: str) -> None:
    call, types = CALLS[case]
    shapes = [((4, 6), torch.float32)] * 2 + [((5, 6), torch.float32), ((3,), torch.int64), ((6,), torch.float32)]
    module = Module.empty()
    main = build_function(module, "main", [to_mlir(TensorType(dtype, shape)) for shape, dtype in shapes])
    values = list(entry(main).arguments)
    placed = call.replace_values([])
    numbered = Call(call.name, tuple(_with_values(call, values)), placed.kwargs)
    with context(), mlir.Location.unknown() as loc, mlir.InsertionPoint(entry(main)):
        built = build(numbered, types, loc)
    finish_function(main, [])
    again = Module.parse(module.text())
    [op] = [op for op in operations(again.functions()["main"]) if read(op) is not None]
    actual = read(op)
    assert actual is not None
    names = {value: number for number, value in enumerate(entry(again.functions()["main"]).arguments)}
    assert actual.name == call.name
    assert _numbered(actual.args, names) == list(call.args)
    assert actual.kwargs == call.kwargs
    assert [len(r) if isinstance(r, list) else 1 for r in results_of(op)] == [
        len(r) if isinstance(r, list) else 1 for r in built
    ]


def _with_values(call: Call, values: list[object]) -> list[object]:
    """The arguments, numbers in tensor places exchanged for values."""
    kinds = [a.kind for a in definitions()[call.name].arguments]
    tensors = (Kind.TENSOR, Kind.OPTIONAL_TENSOR)
    lists = (Kind.TENSORS, Kind.OPTIONAL_TENSORS)

    def exchanged(argument: object, kind: Kind) -> object:
        if kind in tensors and argument is not None:
            return values[argument]  # type: ignore[call-overload]
        if kind in lists:
            return [None if a is None else values[a] for a in argument]  # type: ignore[attr-defined]
        return argument

    return [exchanged(a, kind) for a, kind in zip(call.args, kinds, strict=False)]


def _numbered(argument: object, names: dict[object, int]) -> object:
    if isinstance(argument, mlir.Value):
        return names[argument]
    if isinstance(argument, (list, tuple)):
        return [_numbered(a, names) for a in argument]
    return argument
