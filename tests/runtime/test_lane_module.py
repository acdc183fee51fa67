"""A module that names lanes: the same values everywhere, because lanes run in program order, and a proof."""

from __future__ import annotations

from pathlib import Path

import torch
from stretto.driver.check.lowering_check import compare_with_module, records_of
from stretto.driver.report.explain import explain
from stretto.ir.interpreter import run
from stretto.ir.module import Module
from stretto.ir.verifier import verify
from stretto.runtime.program.program import Program
from stretto.runtime.prover import prove
from stretto.runtime.threads.session import RankThreads, Replicas

from .lane_module import expected, module, tensors
from .rotated_module import lowered


def test_lanes_change_no_values_in_both_interpreters_and_on_threads() -> None:
    given, wanted = tensors(), expected(tensors())
    verify(module())
    torch.testing.assert_close(run(module(), given)[0], wanted)
    assert compare_with_module(module(), records_of(module()), 0, {}, 1e-12, None).is_equal
    with RankThreads(lowered(module()), replicas=Replicas.CHECK) as session:
        (found,), _ = session.forward(given[1:], [], given[:1])
    torch.testing.assert_close(found, wanted)


def test_a_lowered_slot_is_freed_behind_all_lanes_that_use_it() -> None:
    """exp(x) is read on "aux" and then on compute; the sum that takes both lanes' results frees it."""
    code = lowered(module()).functions["main"].code
    [made] = next(step for step in code if step.op == "aten.exp.default").writes()
    readers = [i for i, step in enumerate(code) if made in step.reads()]
    [freed] = [i for i, step in enumerate(code) if made in step.free]
    assert freed > readers[-1] and code[freed].op == "aten.add.Tensor"


def test_lanes_are_in_the_text_of_modules_and_in_folders_of_programs(tmp_path: Path) -> None:
    again = Module.parse(module().text())
    assert lowered(again).functions == lowered(module()).functions
    lowered(module()).save(tmp_path / "lanes")
    loaded = Program.load(tmp_path / "lanes")
    assert [step.lane for step in loaded.functions["main"].code] == [
        step.lane for step in lowered(module()).functions["main"].code
    ]
    assert prove(loaded).lanes == ("aux", "comm.dp", "comm.tp")
    explained = explain(loaded)
    assert explained.lanes == {"aux": 5, "comm.dp": 1, "comm.tp": 1} and explained.order == "safe"
