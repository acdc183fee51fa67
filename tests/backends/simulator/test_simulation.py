"""Simulated steps of small written programs: each time is the sum, or the longer, of what it is made of."""

from dataclasses import replace

import pytest
import torch
from stretto.backends.simulator.events import PIPELINE
from stretto.backends.simulator.kernels import Kind, Products
from stretto.backends.simulator.layout import Layout
from stretto.backends.simulator.simulation import ADAMW_BYTES, ISSUE_SECONDS, Simulation, simulate
from stretto.costs.kernels.collective import node_collective_seconds
from stretto.costs.kernels.gpu import gpu
from stretto.costs.kernels.matmul import matmul_seconds
from stretto.costs.kernels.memory_bound import moved_seconds, quantize_seconds
from stretto.diagnostics import StrettoError
from stretto.driver.simulations.simulation import parts
from stretto.dsl.clusters.cluster import Cluster
from stretto.runtime.errors import ProgramError
from stretto.runtime.program.arguments import Slot as S
from stretto.runtime.program.mesh import RankMesh
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Output, Pipeline, SlotType

CLUSTER = Cluster(2, 4, "A100-SXM-80GB", 25e9, 5e-6)
GPU = gpu("A100-SXM-80GB")
N = 4096
SQUARE = SlotType("bfloat16", (N, N))
PRODUCT = float(matmul_seconds(N, N, N, "bf16", GPU))
BYTES = 2 * N * N


def instruction(op: str, *args: object, out: tuple[int, ...], **kwargs: object) -> Instruction:
    return Instruction(op, tuple(args), kwargs, out)  # type: ignore[arg-type]


def program(code: tuple[Instruction, ...], slots: int, futures: tuple[int, ...], result: int, ranks: int) -> Program:
    """A program of two square inputs in slots 0 and 1."""
    types = tuple(1 if slot in futures else 0 for slot in range(slots))
    inputs = tuple(Input(name, "input", (N, N), "bfloat16", slot, index=slot) for slot, name in enumerate(("x", "w")))
    return Program(
        Manifest("infer", "bfloat16", (("tp", ranks),)), inputs,
        (Output("y", "output", (N, N), "bfloat16", result, index=0),),
        {"main": Function(slots, (0, 1), (result,), code, types=types)},
        types=(SQUARE, SlotType("bfloat16", (N, N), is_future=True)),
    )  # fmt: skip


def test_kernels_run_one_after_the_other_and_pointwise_ones_are_one() -> None:
    code = (
        instruction("aten.mm.default", S(0), S(1), out=(2,)),
        instruction("aten.relu.default", S(2), out=(3,)),
        instruction("aten.mul.Tensor", S(3), S(0), out=(4,)),
        instruction("aten.mm.default", S(4), S(1), out=(5,)),
    )
    spent = simulate(program(code, 6, (), 5, 2), CLUSTER).slowest.spent
    assert spent.computed[Kind.MATMUL] == pytest.approx(2 * PRODUCT)
    fused = float(moved_seconds(3 * BYTES, GPU))  # reads slots 2 and 0, writes slot 4; slot 3 stays inside
    assert spent.computed[Kind.MEMORY] == pytest.approx(fused)
    assert spent.end == pytest.approx(ISSUE_SECONDS + 2 * PRODUCT + fused)
    assert spent.at_peak == pytest.approx(4.0 * N**3 / 312e12)


def test_products_in_fp8_are_quantized_and_those_of_a_gpu_without_fp8_are_refused() -> None:
    code = (instruction("aten.mm.default", S(0), S(1), out=(2,)),)
    hopper = replace(CLUSTER, gpu="H100-SXM-80GB")
    spent = simulate(program(code, 3, (), 2, 2), hopper, products=Products.FP8).slowest.spent
    device = gpu("H100-SXM-80GB")
    expected = float(matmul_seconds(N, N, N, "fp8", device)) + float(quantize_seconds(N * N, device))
    assert spent.computed[Kind.MATMUL] == pytest.approx(expected)
    assert spent.at_peak == pytest.approx(2.0 * N**3 / 1979e12)
    with pytest.raises(StrettoError, match="no peak for fp8"):
        simulate(program(code, 3, (), 2, 2), CLUSTER, products=Products.FP8)


@pytest.mark.parametrize("hides", [True, False])
def test_a_collective_is_hidden_by_what_stands_before_its_wait(hides: bool) -> None:
    start = instruction("comm.all_reduce_start", S(0), axes=("tp",), reduce="sum", out=(2,))
    wait = instruction("comm.wait", S(2), out=(3,))
    product = instruction("aten.mm.default", S(0), S(1), out=(4,))
    total = instruction("aten.add.Tensor", S(3), S(4), out=(5,))
    code = (start, product, wait, total) if hides else (start, wait, product, total)
    simulation = simulate(program(code, 6, (2,), 5, 4), CLUSTER)
    spent = simulation.slowest.spent
    reduced = float(node_collective_seconds("all_reduce", BYTES, 4, GPU))
    assert spent.communicated["tp"] == pytest.approx(reduced)
    waited = reduced - PRODUCT - ISSUE_SECONDS if hides else reduced + ISSUE_SECONDS
    assert spent.waited["tp"] == pytest.approx(max(waited, 0.0))
    assert sum(seconds for _, seconds in parts(simulation.slowest)) == pytest.approx(simulation.seconds)


def test_a_group_over_two_nodes_goes_at_its_network_links_together() -> None:
    def seconds(**sizes: int) -> float:
        return Layout(RankMesh(tuple(sizes.items())), CLUSTER, GPU).collective_seconds("all_gather", ("dp",), 1e9)

    one_link = seconds(dp=2, tp=4)  # ranks 0 and 4: a GPU of each node
    four_links = seconds(dp=8)
    assert 1e9 / 2 / 25e9 < one_link < 1.2 * 1e9 / 2 / 25e9
    assert 1e9 * 7 / 8 / 100e9 < four_links < 1.3 * 1e9 * 7 / 8 / 100e9


def test_a_gather_takes_a_step_for_each_rank_of_a_ring_and_an_all_reduce_goes_along_a_tree() -> None:
    def seconds(kind: str, nodes: int) -> float:
        cluster = replace(CLUSTER, nodes=nodes)
        return Layout(RankMesh((("dp", 4 * nodes),)), cluster, GPU).collective_seconds(kind, ("dp",), 1e-3)

    assert seconds("all_gather", 64) - seconds("all_gather", 32) == pytest.approx(32 * (4 * 3.4e-6 + 5e-6), rel=1e-2)
    assert seconds("all_reduce", 64) - seconds("all_reduce", 32) == pytest.approx(2 * (3.4e-6 + 5e-6), rel=1e-2)


def test_a_mesh_larger_than_the_cluster_is_refused() -> None:
    code = (instruction("aten.mm.default", S(0), S(1), out=(2,)),)
    with pytest.raises(StrettoError, match=r"E0806.*the mesh has 9 ranks, the cluster 8 GPUs") as error:
        simulate(program(code, 3, (), 2, 9), CLUSTER)
    assert 'set "nodes 3"' in error.value.help


def test_a_format_that_the_gpu_lacks_is_refused() -> None:
    code = (instruction("aten.mm.default", S(0), S(1), out=(2,)),)
    with pytest.raises(StrettoError, match=r'E0801.*"V100-SXM2-32GB" has no peak for bf16'):
        simulate(program(code, 3, (), 2, 2), Cluster(1, 2, "V100-SXM2-32GB", 12e9))


def test_a_program_that_states_no_types_is_refused() -> None:
    made = program((instruction("aten.mm.default", S(0), S(1), out=(2,)),), 3, (), 2, 2)
    untyped = replace(made, functions={"main": replace(made.functions["main"], types=())}, types=())
    with pytest.raises(ProgramError, match=r"E0807.*does not state the types of its slots"):
        simulate(untyped, CLUSTER)


def test_gpus_that_nothing_joins_are_refused() -> None:
    code = (instruction("aten.mm.default", S(0), S(1), out=(2,)),)
    with pytest.raises(StrettoError, match=r"E0804.*has no link to the other GPUs") as error:
        simulate(program(code, 3, (), 2, 2), Cluster(1, 2, "RTX-4090", 3e9))
    assert "nvlink 25GB/s" in error.value.help
    assert simulate(program(code, 3, (), 2, 2), Cluster(1, 2, "RTX-4090", 3e9, nvlink=25e9)).seconds > 0


def test_a_program_that_would_wait_for_ever_is_refused() -> None:
    made = pipeline(2)
    silent = replace(made.functions["first"], code=made.functions["first"].code[:1])
    with pytest.raises(ProgramError, match=r"E0808.*not safe to run"):
        simulate(replace(made, functions={**made.functions, "first": silent}), CLUSTER)


def pipeline(microbatches: int) -> Program:
    """Two stages: a product for each microbatch in both, whose result the first sends to the second."""
    first, second = [], []
    for number in range(microbatches):
        first += [
            instruction("aten.mm.default", S(0), S(1), out=(2 + number,)),
            instruction("comm.send", S(2 + number), axis="pp", peer=1, out=()),
        ]
        second += [
            instruction(
                "comm.receive_start", axis="pp", peer=0, size=(N, N), dtype=torch.bfloat16, out=(1 + 3 * number,)
            ),
            instruction("comm.wait", S(1 + 3 * number), out=(2 + 3 * number,)),
            instruction("aten.mm.default", S(2 + 3 * number), S(0), out=(3 + 3 * number,)),
        ]
    futures = tuple(1 if slot % 3 == 1 else 0 for slot in range(1 + 3 * microbatches))
    weights = tuple(
        Input(name, "parameter", (N, N), "bfloat16", slot, requires_grad=True, stages=stages)
        for name, slot, stages in (("x", 0, (0,)), ("a", 1, (0,)), ("b", 0, (1,)))
    )
    result = 3 * microbatches
    return Program(
        Manifest("train", "bfloat16", (("pp", 2),)), weights,
        (Output("y", "output", (N, N), "bfloat16", result, index=0, stages=(1,)),),
        {
            "first": Function(2 + microbatches, (0, 1), (), tuple(first), types=(0,) * (2 + microbatches)),
            "second": Function(1 + 3 * microbatches, (0,), (result,), tuple(second), types=futures),
        },
        types=(SQUARE, SlotType("bfloat16", (N, N), is_future=True)),
        pipeline=Pipeline("pp", ("first", "second"), microbatches),
    )  # fmt: skip


def test_a_stage_waits_for_the_first_microbatch_and_then_keeps_up() -> None:
    simulation: Simulation = simulate(pipeline(4), CLUSTER)
    first, second = simulation.stages
    assert first.spent.end == pytest.approx(4 * PRODUCT + ISSUE_SECONDS)
    message = Layout(RankMesh((("pp", 2),)), CLUSTER, GPU).message_seconds(BYTES, between_nodes=False)
    assert second.spent.waited[PIPELINE] == pytest.approx(PRODUCT + ISSUE_SECONDS + message, rel=1e-3)
    assert second.spent.end == pytest.approx(5 * PRODUCT + message + ISSUE_SECONDS, rel=1e-3)
    assert first.optimizer == pytest.approx(float(moved_seconds(2 * ADAMW_BYTES * N * N, GPU)))


def layers(calls: int) -> Program:
    """A product and an all-reduce beside it, as a function that is called so often, each time on its own result."""
    body = (
        instruction("comm.all_reduce_start", S(0), axes=("tp",), reduce="sum", out=(2,)),
        instruction("aten.mm.default", S(0), S(1), out=(3,)),
        instruction("comm.wait", S(2), out=(4,)),
        instruction("aten.add.Tensor", S(3), S(4), out=(5,)),
    )
    made = program((), 2 + calls, (), 1 + calls, 4)
    code = tuple(
        instruction("call", "layer", [S(1 + number if number else 0), S(1)], out=(2 + number,))
        for number in range(calls)
    )
    layer = Function(6, (0, 1), (5,), body, types=(0, 0, 1, 0, 0, 0))
    return replace(made, functions={"main": replace(made.functions["main"], code=code), "layer": layer})


def test_equal_calls_are_walked_once_however_many_there_are() -> None:
    few, more, many = (simulate(layers(calls), CLUSTER, keeps_tasks=True) for calls in (8, 16, 80))
    assert many.walked - few.walked == 72  # the calls themselves
    assert many.seconds - few.seconds == pytest.approx(9 * (more.seconds - few.seconds), rel=1e-9)
    for tasks in (few.tasks, many.tasks):  # all are told, those of calls that were not walked too
        assert len([task for task in tasks if task.lane == "tp"]) == len(tasks) / 4
    assert len(many.tasks) == 10 * len(few.tasks)
    assert max(task.end for task in many.tasks) == pytest.approx(many.seconds)
    spent = many.slowest.spent
    assert sum(spent.computed.values()) + sum(spent.waited.values()) + spent.issuing == pytest.approx(spent.end)


def test_calls_that_are_folded_take_as_long_as_the_same_instructions_in_line() -> None:
    """The thread is ahead at first and behind later, and a collective ends after the call that starts it."""
    small = SlotType("bfloat16", (64, 64))
    folded = replace(layers(12), types=(small, replace(small, is_future=True)))
    body, code, types = folded.functions["layer"], [], [0, 0]
    slot = {0: 0, 1: 1}
    for number in range(12):
        own = {0: slot[1 + number] if number else 0, 1: 1} | {inner: 4 * number + inner for inner in range(2, 6)}
        slot[2 + number] = own[5]
        for step in body.code:
            args = tuple(S(own[each]) for each in step.reads())
            code.append(replace(step, args=args, out=tuple(own[each] for each in step.writes())))
        types += [1, 0, 0, 0]
    flat = Function(len(types), (0, 1), (len(types) - 1,), tuple(code), types=tuple(types))
    inputs = tuple(replace(each, shape=(64, 64)) for each in folded.inputs)
    result = (replace(folded.outputs[0], shape=(64, 64)),)
    folded = replace(folded, inputs=inputs, outputs=result)
    inlined = replace(folded, functions={"main": flat}, outputs=(replace(result[0], slot=len(types) - 1),))
    assert simulate(folded, CLUSTER).seconds == pytest.approx(simulate(inlined, CLUSTER).seconds, rel=1e-9)
