"""Collectives that do not fit together are found, and said with ranks, operations and places in the model."""

from __future__ import annotations

import pytest
import torch
from stretto.ir.interpreter import DeadlockError, InterpreterError, run, run_ranks
from stretto.ir.module import Module

from .texts import at, module

SQUARE = (("dp", 2), ("tp", 2))
T = "tensor<4xf32>"
FUTURE = f"!async.value<{T}>"


def reduce(axes: str, how: str = "sum", line: int = 1) -> str:
    """An all_reduce of %a."""
    return f'"comm.all_reduce"(%a) {{axes = [{axes}], reduce = "{how}"}} : ({T}) -> {T} {at("block", line)}'


def start(axes: str, line: int = 1) -> str:
    """The start of an all_reduce of %a."""
    return f'"comm.all_reduce_start"(%a) {{axes = [{axes}], reduce = "sum"}} : ({T}) -> {FUTURE} {at("block", line)}'


def wait(name: str, line: int = 1) -> str:
    return f'"comm.wait"({name}) : ({FUTURE}) -> {T} {at("block", line)}'


def gather(axes: str, line: int = 1) -> str:
    """An all_gather of %a."""
    attributes = f"{{axes = [{axes}], dim = 0 : i64}}"
    return f'"comm.all_gather"(%a) {attributes} : ({T}) -> tensor<8xf32> {at("block", line)}'


def lines(*operations: str, result: str = "%a") -> Module:
    """A module of these operations, named %0, %1 and so on."""
    body = "\n".join(f"%{i} = {operation}" for i, operation in enumerate(operations))
    return module(f"%a: {T}", T, f"{body}\nreturn {result} : {T}", mesh=SQUARE)


def run_each(*modules: Module) -> None:
    """Run the modules on ranks (0, 0), (0, 1), (1, 0), (1, 1) of dp and tp."""
    run_ranks(modules, [torch.ones(4)])


def test_swapped_collectives_of_one_group_are_a_mismatch_of_kind_with_both_places() -> None:
    honest = lines(reduce('"tp"', line=11), gather('"tp"', line=12))
    swapped = lines(gather('"tp"', line=12), reduce('"tp"', line=11))
    with pytest.raises(DeadlockError) as caught:
        run_each(honest, swapped, honest, honest)
    error = caught.value
    assert error.code == "E0656"
    assert "kind all_reduce on rank 0, all_gather on rank 1" in error.message
    assert [(s.rank, s.op, s.origin.line) for s in error.stuck] == [
        (0, "comm.all_reduce", 11),
        (1, "comm.all_gather", 12),
    ]
    assert "block at model.py:12" in str(error)


def test_a_mismatch_of_reductions_is_named() -> None:
    with pytest.raises(DeadlockError, match="reduce sum on rank 0, max on rank 2"):
        run_each(*[lines(reduce('"dp"'))] * 2, *[lines(reduce('"dp"', "max"))] * 2)


def test_a_mismatch_of_the_order_of_axes_is_named() -> None:
    with pytest.raises(DeadlockError, match=r"axes \['dp', 'tp'\] on rank 0, \['tp', 'dp'\] on rank 1"):
        run_each(lines(gather_all('"dp", "tp"')), *[lines(gather_all('"tp", "dp"'))] * 3)


def gather_all(axes: str) -> str:
    """An all_gather of %a over all four ranks."""
    return f'"comm.all_gather"(%a) {{axes = [{axes}], dim = 0 : i64}} : ({T}) -> tensor<16xf32>'


def test_a_mismatch_of_shapes_is_named() -> None:
    half = '"aten.slice_tensor"(%a) {dim = 0 : i64, start = 0 : i64, end = 2 : i64} : (tensor<4xf32>) -> tensor<2xf32>'
    small = '"comm.all_reduce"(%0) {axes = ["tp"], reduce = "sum"} : (tensor<2xf32>) -> tensor<2xf32>'
    with pytest.raises(DeadlockError, match=r"shape \(4,\) on rank 0, \(2,\) on rank 1"):
        run_each(lines(reduce('"tp"')), *[lines(half, small)] * 3)


def test_a_cycle_over_two_groups_is_a_deadlock_that_names_every_rank() -> None:
    dp, tp = reduce('"dp"', line=21), reduce('"tp"', line=22)
    one, other = lines(dp, tp), lines(tp, dp)
    with pytest.raises(DeadlockError) as caught:
        run_each(one, other, other, one)
    error = caught.value
    assert error.code == "E0657"
    assert [(s.rank, s.origin.line, s.waits_for) for s in error.stuck] == [
        (0, 21, (2,)),
        (1, 22, (0,)),
        (2, 22, (3,)),
        (3, 21, (1,)),
    ]
    assert 'rank 3 is in "comm.all_reduce" (block at model.py:21), waiting for rank 1' in str(error)


def test_a_rank_that_leaves_a_collective_out_is_a_deadlock_and_said_to_have_finished() -> None:
    full = lines(reduce('"tp"'))
    with pytest.raises(DeadlockError, match="ranks 1, 2, 3 have finished") as caught:
        run_each(full, lines(), full, full)
    assert [s.rank for s in caught.value.stuck] == [0] and caught.value.finished == (1, 2, 3)


def test_starts_in_one_order_may_be_waited_for_in_any() -> None:
    one = lines(start('"dp"'), start('"tp"'), wait("%0"), wait("%1"))
    other = lines(start('"tp"'), start('"dp"'), wait("%0"), wait("%1"))
    run_each(one, other, other, one)


def test_a_wait_before_the_start_that_the_others_wait_for_is_a_deadlock() -> None:
    early = lines(start('"dp"', 31), wait("%0", 32), start('"tp"', 33), wait("%2", 34))
    late = lines(start('"tp"', 33), wait("%0", 34), start('"dp"', 31), wait("%2", 32))
    with pytest.raises(DeadlockError) as caught:
        run_each(early, late, late, early)
    assert [(s.op, s.origin.line) for s in caught.value.stuck] == [("comm.wait", n) for n in (32, 34, 34, 32)]


def test_a_future_that_is_never_waited_on_is_an_error() -> None:
    with pytest.raises(InterpreterError, match=r"(?s)E0658.*rank 0 never waits for .*model.py:5"):
        run(lines(start('"tp"', line=5)), [torch.ones(4)])


def test_a_future_waited_on_twice_is_an_error() -> None:
    with pytest.raises(InterpreterError, match=r"(?s)E0658.*waits twice for .*model.py:5"):
        run(lines(start('"tp"', line=5), wait("%0"), wait("%0")), [torch.ones(4)])


def test_a_wait_on_a_value_that_is_not_a_future_is_an_error() -> None:
    plain = f'"comm.wait"(%a) : ({T}) -> {T}'
    with pytest.raises(InterpreterError, match=r"(?s)E0658.*not a future"):
        run(lines(plain), [torch.ones(4)])


def test_modules_of_other_meshes_or_counts_do_not_go_together() -> None:
    three = module(f"%a: {T}", T, f"return %a : {T}")
    with pytest.raises(InterpreterError, match="E0660"):
        run_ranks([lines()] * 3, [torch.ones(4)])
    with pytest.raises(InterpreterError, match="E0660"):
        run_ranks([lines(), lines(), lines(), three], [torch.ones(4)])


def test_an_axis_that_the_mesh_does_not_have_is_refused() -> None:
    with pytest.raises(InterpreterError, match=r"(?s)E0652.*the mesh has dp, tp"):
        run(lines(reduce('"pp"')), [torch.ones(4)])
