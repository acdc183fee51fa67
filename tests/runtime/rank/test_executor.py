"""One rank: instructions of every form, frames that outlive their forward, failures that name their place."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from stretto.runtime import Executor, RankGroup, RunError
from stretto.runtime.program.ops import _QUICK, torch_op
from stretto.runtime.program.records import Function, Location
from torch import Tensor

from ..tiny_programs import S, infer, linear, numbers, run_alone, step


def test_results_come_in_the_programs_order() -> None:
    program = infer([step("aten.neg.default", S(0), out=[1]), step("aten.exp.default", S(0), out=[2])], [(3,)], [2, 1])
    x = numbers(3)
    exp, neg = run_alone(program, x)
    assert torch.equal(exp, x.exp())
    assert torch.equal(neg, -x)


def test_lists_of_tensors_go_in_and_come_out() -> None:
    code = [
        step("aten.split.Tensor", S(0), 2, 1, out=[1, None, 2]),
        step("aten.unbind.int", S(1), out=[3, 4]),
        step("aten.cat.default", [S(2), S(1)], 1, out=[5]),
        step("aten.stack.default", [S(3), S(4)], out=[6]),
    ]
    x = numbers(2, 6)
    joined, stacked = run_alone(infer(code, [(2, 6)], [5, 6]), x)
    assert torch.equal(joined, torch.cat([x[:, 4:], x[:, :2]], 1))
    assert torch.equal(stacked, x[:, :2])


def test_a_list_of_one_tensor_is_still_a_list() -> None:
    (whole,) = run_alone(infer([step("aten.split.Tensor", S(0), 4, out=[1])], [(4,)], [1]), numbers(4))
    assert torch.equal(whole, numbers(4))


def test_ops_with_several_results_may_drop_some() -> None:
    code = [
        step("aten.native_layer_norm.default", S(0), [4], None, None, 1e-5, out=[1, None, 2]),
        step("aten.max.dim", S(0), 1, out=[None, 3]),
        step("aten.max.dim", S(0), 1, out=[None, None]),
    ]
    x = numbers(2, 4)
    normed, scale, where = run_alone(infer(code, [(2, 4)], [1, 2, 3]), x)
    assert torch.allclose(normed, torch.nn.functional.layer_norm(x, [4]))
    assert scale.shape == (2, 1)
    assert where.tolist() == [3, 3]


def test_ops_without_tensors_get_the_ranks_device_and_all_kinds_of_arguments() -> None:
    code = [
        step("aten.full.default", [2], float("-inf"), dtype=torch.float64, out=[1]),
        step("aten.arange.start_step", 0, 6, 2, out=[2]),
        step("aten.zeros.default", [2, 1], out=[3]),
        step("aten.scalar_tensor.default", 1.5, out=[4]),
        step("aten.div.Tensor_mode", S(0), 2.0, rounding_mode="floor", out=[5]),
    ]
    full, count, zeros, scalar, floor = run_alone(infer(code, [(3,)], [1, 2, 3, 4, 5]), numbers(3))
    assert full.dtype == torch.float64
    assert full.tolist() == [float("-inf")] * 2
    assert count.tolist() == [0, 2, 4]
    assert zeros.shape == (2, 1)
    assert scalar.item() == 1.5
    assert floor.tolist() == [0.0, 0.0, 1.0]


def test_factories_get_the_device() -> None:
    program = infer(
        [step("aten.zeros.default", [2], out=[0]), step("rank.offset", axes=[], chunk=3, out=[1])], [], [0, 1]
    )
    results, _ = Executor(program, RankGroup(program.mesh).communicator(0), "meta").forward([])
    assert {result.device.type for result in results} == {"meta"}


def test_a_folded_layer_is_called_many_times_and_may_call_others() -> None:
    double = Function(2, (0,), (1,), (step("aten.add.Tensor", S(0), S(0), out=[1]),))
    layer = Function(
        4, (0, 1), (3, 0), (step("call", "double", [S(0)], out=[2]), step("aten.add.Tensor", S(2), S(1), out=[3]))
    )
    code = [
        step("call", "layer", [S(0), S(1)], out=[2, None]),
        step("call", "layer", [S(2), S(1)], out=[3, 4], free=[2]),
        step("call", "layer", [S(3), S(3)], out=[3, None], free=[]),
    ]
    program = infer(code, [(2,), (2,)], [3, 4], functions={"layer": layer, "double": double})
    last, passed = run_alone(program, torch.ones(2), torch.ones(2))
    assert last.tolist() == [21.0, 21.0]
    assert passed.tolist() == [3.0, 3.0]


def test_a_callee_frees_what_its_caller_no_longer_needs() -> None:
    seen: list[bool] = []
    body = Function(
        3, (0,), (2,), (step("aten.neg.default", S(0), out=[1], free=[0]), step("aten.abs.default", S(1), out=[2]))
    )
    code = [step("aten.exp.default", S(0), out=[1]), step("call", "body", [S(1)], out=[2], free=[1])]
    program = infer(code, [(2,)], [2], functions={"body": body})
    executor = Executor(program, RankGroup(program.mesh).communicator(0))
    watched: list[weakref.ref[Tensor]] = []

    def exp(tensor: Tensor) -> Tensor:
        result = torch.exp(tensor)
        watched.append(weakref.ref(result))
        return result

    def absolute(tensor: Tensor) -> Tensor:
        gc.collect()
        seen.append(watched[0]() is None)
        return torch.abs(tensor)

    names = executor._forward.__globals__
    for name, op in executor._translation.ops.items():
        names[name] = {"aten.exp.default": exp, "aten.abs.default": absolute}.get(op, names[name])
    executor.forward([torch.ones(2)])
    assert seen == [True]


def test_forwards_may_be_outstanding_and_each_backward_uses_its_own() -> None:
    program = linear(ranks=1)
    executor = Executor(program, RankGroup(program.mesh).communicator(0))
    w, batches = torch.randn(4, 3), [torch.randn(5, 4) for _ in range(3)]
    frames = [executor.forward([w, x])[1] for x in batches]
    for x, frame in reversed(list(zip(batches, frames, strict=True))):
        (gradients,) = executor.backward(frame, [torch.ones(())])
        torch.testing.assert_close(gradients, x.t() @ (2 * (x @ w)))


def test_a_second_backward_is_refused() -> None:
    program = linear(ranks=1)
    executor = Executor(program, RankGroup(program.mesh).communicator(0))
    _, frame = executor.forward([torch.randn(4, 3), torch.randn(5, 4)])
    executor.backward(frame, [torch.ones(())])
    with pytest.raises(RunError) as caught:
        executor.backward(frame, [torch.ones(())])
    assert caught.value.code == "E0332"


def test_nothing_is_recorded_for_autograd() -> None:
    program = linear(ranks=1)
    executor = Executor(program, RankGroup(program.mesh).communicator(0))
    outputs, _ = executor.forward([torch.randn(4, 3, requires_grad=True), torch.randn(5, 4)])
    assert not any(output.requires_grad for output in outputs)


def test_a_failure_names_rank_instruction_op_module_source_and_callers() -> None:
    body = Function(2, (0, 1), (), (step("aten.mm.default", S(0), S(1), loc=0),))
    code = [step("aten.neg.default", S(0), out=[2]), step("call", "body", [S(2), S(1)], loc=1)]
    program = infer(code, [(2, 3), (2, 3)], [0], functions={"body": body})
    program = replace(program, locations=(Location("gpt.py", 33, "layers.0.mlp"), Location("gpt.py", 40)))
    with pytest.raises(RunError) as caught:
        run_alone(program, numbers(2, 3), numbers(2, 3))
    text = caught.value.render()
    assert text.startswith('gpt.py:33:1: error[E0320]: rank 0 failed in instruction 0 (aten.mm.default) of "body"')
    assert "module layers.0.mlp" in text
    assert "2x3 and 2x3" in text
    assert 'called by instruction 1 of "main": gpt.py:40:1' in text


def test_a_failure_in_the_backward_counts_from_the_programs_start() -> None:
    program = linear(ranks=1)
    executor = Executor(program, RankGroup(program.mesh).communicator(0))
    _, frame = executor.forward([torch.randn(4, 3), torch.randn(5, 4)])
    with pytest.raises(RunError, match="instruction 6 "):
        executor.backward(frame, [torch.ones(7, 7)])


def test_results_that_do_not_fit_the_slots_are_a_failure_of_that_instruction() -> None:
    program = infer([step("aten.split.Tensor", S(0), 1, out=[1, 2])], [(3,)], [1])
    with pytest.raises(RunError, match=r"instruction 0 \(aten.split.Tensor\)"):
        run_alone(program, numbers(3))


def test_too_few_inputs_fail_before_the_first_instruction() -> None:
    with pytest.raises(RunError, match="before its first instruction"):
        run_alone(infer([], [(3,)], [0]))


def test_quick_ways_to_an_op_take_the_same_arguments() -> None:
    x = numbers(2, 2, start=1)
    arguments: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {
        "add.Tensor": ((x, x), {"alpha": 2}), "sub.Tensor": ((x, x), {"alpha": 2}),
        "mul.Scalar": ((x, 2), {}), "div.Scalar": ((x, 2), {}),
        "addmm.default": ((x, x, x), {"beta": 2, "alpha": 3}), "bmm.default": ((x[None], x[None]), {}),
        "pow.Tensor_Scalar": ((x, 3), {}), "reshape.default": ((x, [4]), {}), "transpose.int": ((x, 0, 1), {}),
        "permute.default": ((x, [1, 0]), {}), "unsqueeze.default": ((x, 1), {}), "squeeze.dim": ((x[None], 0), {}),
        "cat.default": (([x, x], 1), {}), "where.self": ((x > 2, x, -x), {}),
        "sum.dim_IntList": ((x, [1], True), {"dtype": torch.float64}),
        "mean.dim": ((x, [0], False), {"dtype": torch.float64}),
        "embedding.default": ((x, torch.tensor([1, 0]), -1, False, False), {}),
        "mul.Tensor": ((x, x), {}), "div.Tensor": ((x, x), {}), "mm.default": ((x, x), {}),
    }  # fmt: skip
    rows = torch.tensor([[1, 0], [0, 1]])
    arguments |= {
        "where.ScalarOther": ((x > 2, x, 0.5), {}), "sum.default": ((x,), {"dtype": torch.float64}),
        "amax.default": ((x, [1], True), {}), "stack.default": (([x, x], 1), {}),
        "constant_pad_nd.default": ((x, [0, 1], 2.0), {}), "gather.default": ((x, 1, rows), {}),
        "scatter_add.default": ((x, 1, rows, x), {}), "native_layer_norm.default": ((x, [2], None, None, 1e-5), {}),
        "expand.default": ((x[None], [3, 2, 2]), {}), "unbind.int": ((x, 1), {}),
        **{f"{name}.Scalar": ((x, 2), {}) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    }  # fmt: skip
    for name in _QUICK:
        args, kwargs = arguments.get(name.removeprefix("aten."), ((x,), {}))
        op = torch_op(name)
        torch.testing.assert_close(op.call(*args, **kwargs), op.overload(*args, **kwargs), rtol=0, atol=0)
