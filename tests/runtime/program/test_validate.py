"""What a program may not contain is named by its path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from stretto.runtime import Program, ProgramError
from stretto.runtime.program.arguments import Value
from stretto.runtime.program.records import Function, Input, Instruction, Shard

from ..tiny_programs import F32, S, infer, linear, step

TP = (("tp", 2),)


def refused(program: Program) -> str:
    with pytest.raises(ProgramError) as caught:
        _ = program.validated
    assert caught.value.code == "E0306"
    return caught.value.render()


def of(*code: Instruction, results: Sequence[int] = (0,), **functions: Function) -> Program:
    return infer(code, [(2,)], results, TP, functions)


def drawn(**constants: Value) -> Instruction:
    return step("rank.random", S(0), S(0), **constants, below=None, out=[1])


def _rows(**given: Any) -> Instruction:
    kwargs = {"axes": ["tp"], "bound": 4, "send_counts": S(0), "receive_counts": S(0)} | given
    return step("comm.all_to_all_rows_start", S(0), **kwargs, out=[1])


def _bucket(slots: Value, out: Sequence[int], **constants: Value) -> Instruction:
    return step("comm.all_gather_coalesced_start", slots, axes=["tp"], **constants, out=out)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (of(step("aten.neg.default", S(1), out=[1])), "slot 1 is read, but is not set"),
        (of(step("aten.neg.default", S(0), out=[1], free=[0]), step("aten.neg.default", S(0))), "slot 0 is read"),
        (of(step("aten.neg.default", S(0), out=[1], free=[2])), "freed that is not set"),
        (of(step("aten.neg.default", S(0), out=[1, 2])), "returns one value"),
        (of(step("aten.split.Tensor", S(0), 1, out=[1, 1])), "twice"),
        (of(step("aten.neg.default", S(0), out=[1], loc=0)), "no location 0"),
        (of(step("call", "f", [S(0)], out=[1])), "expected [function, [slots]]"),
        (of(step("call", "f", [S(0)], out=[1]), f=Function(1, (), (), ())), "takes 0 slots, found 1"),
        (of(step("call", "f", [S(0)], out=[]), f=Function(1, (0,), (0,), ())), "returns 1 values, found 0 slots"),
        (of(f=Function(1, (0,), (0,), (step("call", "f", [S(0)], out=[0]),))), "'f' calls itself"),
        (of(f=Function(2, (0,), (1,), ())), "not set at the end"),
        (of(f=Function(1, (0, 0), (), ())), "twice"),
        (of(f=Function(1, (4,), (), ())), "no such slot"),
        (of(f=Function(1, (0,), (), (), backward_at=0)), "backward_at"),
        (of(step("comm.all_reduce_start", S(0), axes=["pp"], reduce="sum", out=[1])), "not axes of the mesh"),
        (of(step("comm.all_reduce_start", S(0), axes=["tp", "tp"], reduce="sum", out=[1])), "names an axis twice"),
        (of(step("comm.all_reduce_start", S(0), axes=["tp"], reduce="mean", out=[1])), "'mean' is not one of"),
        (of(step("comm.all_reduce_start", S(0), axes=["tp"], out=[1])), "takes axes, reduce"),
        (of(step("comm.permute_start", S(0), axes=["tp"], shift="1", out=[1])), "'1' is not a whole number"),
        (of(step("comm.permute_start", S(0), axes=["tp"], shift=True, out=[1])), "True is not a whole number"),
        (of(step("comm.permute_start", S(0), axes=["tp"], out=[1])), "takes axes, shift"),
        (of(_rows(send_counts=3)), "send_counts: 3 is not a slot"),
        (of(_rows(bound=-1)), "bound: -1 is not a size"),
        (of(_rows(receive_counts=S(4))), "slot 4 is read, but is not set"),
        (of(_bucket(S(0), dims=[0], out=[1])), "takes a list of slots"),
        (of(_bucket([], dims=[], out=[])), "takes a list of slots"),
        (of(_bucket([S(0), 3], dims=[0, 0], out=[1, 2])), "takes a list of slots"),
        (of(_bucket([S(0), S(0)], dims=[0, 0], out=[1])), "of 2 tensors returns as many, found 1 slots"),
        (of(_bucket([S(0), S(0)], dims=[0], out=[1, 2])), "expected a dim for each of 2 tensors, found 1"),
        (of(_bucket([S(0)], dims=[-1], out=[1])), "[-1] is not a list of dims"),
        (of(_bucket([S(0)], dims=0, out=[1])), "0 is not a list of dims"),
        (of(_bucket([S(0)], dim=0, out=[1])), "takes axes, dims"),
        (of(replace(step("aten.neg.default", S(0), out=[1]), lane="no lane")), "'no lane' is not a lane"),
        (
            of(replace(step("call", "f", [S(0)], out=[1]), lane="a"), f=Function(1, (0,), (0,), ())),
            "or a call names one",
        ),
        (
            of(*(replace(step("aten.neg.default", S(0), out=[1]), lane=f"a{i}") for i in range(17))),
            "more than 16 lanes",
        ),
        (of(step("comm.wait", 3, out=[1])), "takes 1 slot"),
        (of(step("comm.wait", S(0), out=[])), "returns one value"),
        (of(step("rank.shard", S(0), axes=["tp"], dim=0, chunk="1", out=[1])), "not a size or a dim"),
        (of(drawn(size=[4], axes=["pp"], chunks=[2])), "not axes of the mesh"),
        (of(drawn(size=[4], axes=["tp"], chunks=[4])), "expected 2, found 4 (4 over 'tp')"),
        (of(drawn(size=[4], axes=["", ""], chunks=[4])), "differ in length"),
        (of(drawn(size=[4], axes=[0], chunks=[4])), "expected a size and a text of axes"),
        (of(drawn(size="4", axes=[""], chunks=[4])), "expected lists"),
        (of(step("aten.neg.default", S(0), out=[1], **{"a-b": 1})), "not an identifier"),
        (of(results=(5,)), "slot 5 of 'y0' is not set after the forward"),
    ],
)
def test_unsound_instructions_are_refused(program: Program, message: str) -> None:
    assert message in refused(program)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": (Shard(0, ("pp",), 2, 4),)}, "not axes of the mesh"),
        ({"shards": (Shard(0, ("tp",), 3, 4),)}, "3, expected 2"),
        ({"shards": (Shard(0, ("tp",), 2, 5),)}, "5, but the shape is [4, 3]"),
        ({"shards": (Shard(2, ("tp",), 2, 4),)}, "2 is not a dim"),
        ({"shards": (Shard(0, ("tp",), 2, 4, (3, 1)),)}, "[3, 1] are no parts of 4 elements that 2 ranks divide"),
        ({"shards": (Shard(0, ("tp",), 2, 4, (2, 4)),)}, "[2, 4] are no parts of 4 elements"),
        ({"stored_over": ("pp",)}, "no dim of 'w' is sharded over 'pp'"),
        ({"shards": (Shard(0, ("tp",), 2, 4),), "stored_over": ("tp", "tp")}, "an axis is listed twice"),
        ({"shards": (Shard(0, ("tp",), 2, 4), Shard(1, ("tp",), 2, 3))}, "an axis shards 'w' twice"),
        ({"kind": "weight"}, "'weight' is not one of"),
        ({"dtype": "float31"}, "'float31' is not a dtype"),
        ({"shape": (-1, 3), "shards": ()}, "negative extent"),
        ({"kind": "random", "shards": ()}, "two int64 numbers"),
        ({"slot": 1}, "share a slot"),
        ({"slot": 11}, 'not the arguments of "main"'),
    ],
)
def test_unsound_inputs_are_refused(change: dict[str, Any], message: str) -> None:
    program = linear()
    first: Input = replace(program.inputs[0], **change)
    assert message in refused(replace(program, inputs=(first, *program.inputs[1:])))


def test_two_inputs_of_one_kind_need_two_names() -> None:
    program = infer([], [(2,), (2,)], [0])
    inputs = tuple(replace(argument, name="x") for argument in program.inputs)
    assert "have the same name" in refused(replace(program, inputs=inputs))


def test_a_dim_is_cut_once() -> None:
    mesh = (("dp", 2), ("tp", 2))
    program = infer([], [(4,)], [0], mesh)
    cut_twice = replace(program.inputs[0], shards=(Shard(0, ("dp",), 2, 4), Shard(0, ("tp",), 2, 4)))
    assert "a dim is sharded twice" in refused(replace(program, inputs=(cut_twice,)))


def test_a_program_needs_a_main_and_tangents_a_backward() -> None:
    program = linear()
    main = program.functions["main"]
    assert 'no "main"' in refused(replace(program, functions={"f": main}))
    assert "no backward" in refused(replace(program, functions={"main": replace(main, backward_at=None)}))


def test_an_axis_of_the_mesh_is_listed_once() -> None:
    program = infer([], [(2,)], [0])
    manifest = replace(program.manifest, mesh=(("tp", 2), ("tp", 2)), dtype=F32)
    assert "an axis is listed twice" in refused(replace(program, manifest=manifest))
