"""A module in order becomes a program with an instruction list for each stage, and runs as the interpreter runs it."""

from __future__ import annotations

import pytest
import torch
from stretto.backends.program.lower_program import Lowered, lower_program
from stretto.ir.equivalence import random_inputs
from stretto.ir.interpreter import run
from stretto.ir.module import Module
from stretto.passes.manager import PassManager
from stretto.passes.overlap.hoist_collectives import HoistCollectives
from stretto.passes.overlap.start_collectives import StartCollectives
from stretto.runtime import Program
from stretto.runtime.program.program import Manifest
from stretto.runtime.program.records import Pipeline
from stretto.runtime.threads.session import RankThreads, Replicas

from ...ir.interpreter.staged import in_order


def started() -> Module:
    """The step in float64, its communication started."""
    module = Module.parse(in_order().text().replace("f32", "f64"))
    PassManager([HoistCollectives(), StartCollectives()]).run(module)
    return module


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    return lower_program(started())


def program_of(lowered: Lowered) -> Program:
    manifest = Manifest(mode="train", dtype="float64", mesh=lowered.mesh)
    parts = (lowered.inputs, lowered.outputs, lowered.functions, lowered.locations)
    return Program(manifest, *parts, pipeline=lowered.pipeline, types=lowered.types).validated


def test_the_mesh_of_a_program_has_axes_of_ranks_alone(lowered: Lowered) -> None:
    assert lowered.mesh == (("dp", 2), ("pp", 2))
    assert lowered.pipeline == Pipeline("pp", ("main_0", "main_1"), 2)


def test_inputs_and_outputs_say_which_stages_take_and_give_them(lowered: Lowered) -> None:
    assert [(i.name, i.stages, i.shape) for i in lowered.inputs] == [
        ("w0", (0,), (4, 4)),
        ("w1", (1,), (4, 4)),
        ("x", (0,), (8, 4)),
        ("tangent", (1,), ()),
    ]
    assert [(o.kind, o.name, o.stages) for o in lowered.outputs] == [
        ("output", "loss", None),
        ("gradient", "w0", (0,)),
        ("gradient", "w1", (1,)),
    ]
    assert [shard.axes for shard in lowered.inputs[2].shards] == [("dp",)]


def test_calls_name_their_microbatch_and_transfers_their_peer(lowered: Lowered) -> None:
    code = lowered.functions["main_1"].code
    assert [item.kwargs["microbatch"] for item in code if item.op == "call"] == [0, 0, 0, 1, 1, 1]
    receive = next(item for item in code if item.op == "comm.receive_start")
    assert (receive.args, receive.kwargs) == ((), {"axis": "pp", "peer": 0, "size": [2, 4], "dtype": torch.float64})
    send = next(item for item in code if item.op == "comm.send")
    assert (len(send.args), send.kwargs, send.out) == (1, {"axis": "pp", "peer": 0}, ())


def test_entries_take_and_give_in_the_order_of_the_program() -> None:
    text = started().text()
    for old, new in ((0, 9), (2, 0), (9, 2)):
        text = text.replace(f"order = {old} : i64", f"order = {new} : i64")
    swapped = lower_program(Module.parse(text))
    assert [i.name for i in swapped.inputs] == ["x", "w1", "w0", "tangent"]
    assert swapped.functions["main_0"].arguments == (1, 0)
    results = [lower_program(started()).functions["main_0"].results, swapped.functions["main_0"].results]
    assert results[1] == results[0][::-1]


def test_a_program_gives_what_the_interpreter_gives(lowered: Lowered) -> None:
    module = started()
    inputs = random_inputs(module, 4)
    loss, *gradients = run(module, inputs)
    w0, w1, x, tangent = inputs
    parameters = [w0.requires_grad_(), w1.requires_grad_()]
    with RankThreads(program_of(lowered), replicas=Replicas.CHECK) as session:
        (actual,), state = session.forward(parameters, [], [x], scale=float(tangent))
        got = session.backward(state, [torch.ones((), dtype=torch.float64)])
    torch.testing.assert_close(actual, loss, rtol=1e-12, atol=0)
    for name, gradient in zip(("w0", "w1"), gradients, strict=True):
        torch.testing.assert_close(got[name], gradient, rtol=1e-12, atol=1e-14)
