"""`zero`: the values are those of one device, and a step moves the bytes of the published formulas.

Symbols: P elements that are cut, R those that the backward reads, n ranks, b bytes of an element, M microbatches. By
ring algorithms a rank sends (n-1)/n of a whole tensor to gather it, and as many to reduce-scatter it (ZeRO,
arXiv:1910.02054, section 7: 2P of data parallelism at levels 1 and 2, and 3P at level 3).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.driver.report.explain import explain
from stretto.driver.report.show_explanation import show_explanation
from stretto.driver.report.traffic import traffic_of
from stretto.dsl import Plan
from stretto.frontend.captured import Mode
from stretto.ir.bindings import Value
from stretto.ir.module import Module, callee, operations
from stretto.runtime.prover import prove
from stretto.runtime.threads.communicator import RankGroup
from stretto.runtime.threads.rendezvous import Call
from torch import Tensor, nn

from ..subsets import some
from .checking import assert_equal, compiled
from .models import MODELS, Case, Size, plan
from .traffic import kinds, messages

SIZE = {"vocab": 44, "width": 16, "heads": 4, "head": 4, "inner": 24, "seq": 8}
RANKS, MICROBATCHES, BYTES = 2, 2, 8
STORE = 'store "*" dim 0 over dp'
PIPELINES = ("microbatches 2", "microbatches 2  schedule zb-v", "microbatches 2  schedule interleaved")


@cache
def _case(model: str = "gpt", layers: int = 2) -> Case:
    return MODELS[model](Size(batch=4, layers=layers, **SIZE))


class Layers(nn.Module):
    """Linear layers without biases: the backward reads all weights but the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


P, R = 4 * 16, 3 * 16


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """By kind, the bytes that rank 0 sends by ring algorithms for tensors with elements to cut, as it starts them."""
    counts: Counter[str] = Counter()
    join = RankGroup.join

    def counted(self: RankGroup, rank: int, members: Any, number: int, call: Call, tensors: Sequence[Tensor]) -> Any:
        if rank == 0 and tensors[0].dim():
            parts = {"all_gather": RANKS - 1, "reduce_scatter": (RANKS - 1) / RANKS, "all_reduce": RANKS - 1}
            kind = call.op.removesuffix("_coalesced")
            counts[kind] += int(parts[kind] * sum(tensor.nbytes for tensor in tensors))
            counts["collectives"] += 1
        return join(self, rank, members, number, call, tensors)

    monkeypatch.setattr(RankGroup, "join", counted)
    return counts


def step(text: str, *, microbatches: int = 1) -> None:
    """A step of a training loop, of several calls of which all but the last are inside `no_sync`."""
    model = stretto.compile(Layers().double(), plan=f"mesh (pp=1, dp={RANKS})\n{text}")
    x = torch.randn(8, 4, dtype=torch.float64)
    for _ in range(microbatches - 1):
        with model.no_sync():
            model(x).backward()
    model(x).backward()


def formula(gathered: int, scattered: int) -> dict[str, int]:
    """The bytes of a rank that gathers and scatters so many elements."""
    return {"all_gather": gathered * BYTES * (RANKS - 1) // RANKS,
            "reduce_scatter": scattered * BYTES * (RANKS - 1) // RANKS}  # fmt: skip


def bytes_of(sent: Counter[str]) -> dict[str, int]:
    """The bytes without the number of collectives."""
    return {kind: count for kind, count in sent.items() if kind != "collectives"}


@pytest.mark.parametrize(
    ("line", "gathered"),
    [("zero 1 over dp", P), ("zero 2 over dp", P), ("zero 3 over dp { keep forward }", P), ("zero 3 over dp", P + R)],
)
def test_a_step_of_one_call_gathers_once_or_in_each_direction_and_scatters_once(
    line: str, gathered: int, sent: Counter[str]
) -> None:
    step(line)
    assert bytes_of(sent) == formula(gathered, P)


@pytest.mark.parametrize(("level", "gathers"), some((3, 2), (1, 1)))
def test_with_a_precision_the_format_that_is_computed_in_is_gathered(level: int, gathers: int) -> None:
    """Two bytes for each element of a GPT; at level 3 also for those that the backward reads."""
    case = _case(layers=2)
    text = f"mesh (dp={RANKS})\nzero {level} over dp\nprecision {{ params fp32  compute bf16  reduce fp32 }}"
    options = Options(mode=Mode.TRAIN, loss_only=True, arguments={"inputs": case.about})
    program = compile_program(CompileRequest.of(case.model, (), case.inputs, Plan.parse(text), options)).program
    sent = sum(site.sent_bytes * count for site, count in traffic_of(program).items() if site.kind == "all_gather")
    again = sum(p.numel() for name, p in case.model.named_parameters() if not _is_read_once(name))
    whole = sum(p.numel() for p in case.model.parameters()) + (gathers - 1) * again
    assert sent == whole * torch.bfloat16.itemsize * (RANKS - 1) // RANKS


def _is_read_once(name: str) -> bool:
    """Whether the backward does not read a parameter: embeddings, and biases but those of norms, which are idioms."""
    return name.startswith(("wte", "wpe")) or (name.endswith("bias") and "norm" not in name)


@pytest.mark.parametrize(("size", "collectives"), [("128B", 8), ("256B", 4), ("1KB", 3)])
def test_buckets_move_the_same_bytes_in_fewer_collectives(size: str, collectives: int, sent: Counter[str]) -> None:
    """Four weights of 128 bytes are gathered, and reduced, one by one, in twos, all together.

    The last is gathered by itself all the same: a layer ahead, and no earlier.
    """
    step(f"zero 1 over dp {{ bucket {size} }}")
    assert bytes_of(sent) == formula(P, P) and sent["collectives"] == collectives


@pytest.mark.parametrize(
    ("line", "gathered", "scattered"),
    [
        ("1 over dp", P, P),
        ("2 over dp", P, MICROBATCHES * P),
        ("3 over dp", MICROBATCHES * (P + R), MICROBATCHES * P),
        ("3 over dp { keep forward }", P, MICROBATCHES * P),
    ],
)
def test_under_a_pipeline_level_1_scatters_once_a_step_2_for_each_microbatch_and_3_gathers_for_each_too(
    line: str, gathered: int, scattered: int, sent: Counter[str]
) -> None:
    step(f"zero {line}\npipeline over pp {{ microbatches {MICROBATCHES} }}")
    assert bytes_of(sent) == formula(gathered, scattered)


@pytest.mark.parametrize(("level", "scattered"), [(1, 0), (2, 3 * P), (3, 3 * P)])
def test_inside_no_sync_level_1_waits_with_the_reduction_and_2_and_3_do_not(
    level: int, scattered: int, sent: Counter[str]
) -> None:
    """Of threads, the process adds up what waits, without a collective; so level 1 starts none."""
    step(f"zero {level} over dp", microbatches=3)
    assert sent["reduce_scatter"] == formula(0, scattered)["reduce_scatter"]


def test_gradients_of_stored_parameters_are_reduced_in_the_format_that_the_statement_says(sent: Counter[str]) -> None:
    """Half of the bytes, and the rounding of that format; others are reduced in their own."""
    step('zero 3 over dp { reduce fp32  only "layers.{0,1}" }')
    scattered = P // 2 * torch.float32.itemsize * (RANKS - 1) // RANKS
    assert sent["reduce_scatter"] == scattered and sent["all_reduce"] == P // 2 * BYTES * (RANKS - 1)


NODES, GCDS = 2, 2
WITHIN = "node=2, gcd=2)\naxes dp = node, gcd\n"


@pytest.fixture
def crossing(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """By kind and axis, the elements that rank 0 of (node, gcd) sends by ring algorithms."""
    counts: Counter[tuple[str, str]] = Counter()
    join = RankGroup.join

    def counted(self: RankGroup, rank: int, members: Any, number: int, call: Call, tensors: Sequence[Tensor]) -> Any:
        if rank == 0 and tensors[0].dim():
            n, axis = len(members), {(0, 1): "gcd", (0, 2): "node"}[tuple(members)]
            share = {"all_gather": n - 1, "reduce_scatter": (n - 1) / n, "all_reduce": 2 * (n - 1) / n}[call.op]
            counts[call.op, axis] += int(share * sum(tensor.numel() for tensor in tensors))
        return join(self, rank, members, number, call, tensors)

    monkeypatch.setattr(RankGroup, "join", counted)
    return counts


@pytest.mark.parametrize(
    ("line", "gathered", "microbatches"),
    [
        ("zero 1 over dp { within gcd }", P, 1),
        ("zero 3 over dp { within gcd }", P + R, 1),
        ("zero 3 over gcd", P + R, 1),
        ("zero 2 over dp { within gcd }\npipeline over pp { microbatches 2 }", P, 2),
    ],
)
def test_between_nodes_a_step_sends_each_part_once_and_within_a_node_whatever_the_level_says(
    line: str, gathered: int, microbatches: int, crossing: Counter[tuple[str, str]]
) -> None:
    """The secondary partition of ZeRO++ (arXiv:2306.10209, section 3.2), and the hybrid sharding of FSDP
    (arXiv:2304.11277, section 3.2.2), which replicates over nodes: an all-reduce of 1/gcd of the gradients.
    """
    model = stretto.compile(Layers().double(), plan=f"mesh (pp=1, {WITHIN}{line}")
    model(torch.randn(8, 4, dtype=torch.float64)).backward()
    part = P // GCDS * (NODES - 1) // NODES
    between = {("all_gather", "node"): part, ("reduce_scatter", "node"): part}
    assert crossing == {
        ("all_gather", "gcd"): gathered * (GCDS - 1) // GCDS,
        ("reduce_scatter", "gcd"): microbatches * P * (GCDS - 1) // GCDS,
        **(between if "within" in line else {("all_reduce", "node"): 2 * part}),
    }


@pytest.mark.parametrize(("line", "share"), [("over dp { within gcd }", NODES * GCDS), ("over gcd", GCDS)])
def test_optimizer_states_are_cut_over_all_axes_of_the_statement(line: str, share: int) -> None:
    tensors = explain(compiled(_case(), f"mesh ({WITHIN}zero 3 {line}").program).parameters
    assert {t.global_bytes / t.bytes_per_rank for t in tensors} == {share}


def test_beside_tensor_parallelism_parameters_are_gathered_over_the_data_axis_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = compiled(_case(), plan("gpt", "dp=2, tp=2", "zero 3 over dp"))
    over = {m.axes for m in messages(program) if m.kind in ("all_gather", "reduce_scatter")}
    assert over == {("dp",)}
    parameters = len(program.program.of_kind("parameter"))
    assert kinds(messages(program))["reduce_scatter"] == parameters
    assert {p.stored_over for p in program.program.of_kind("parameter")} == {("dp",)}
    explanation = explain(program.program)
    placed = {tensors.name: (tensors.placement, tensors.computed) for tensors in explanation.parameters}
    assert placed["blocks.*.up.weight"] == ("dim 0 over tp; dim 1 over dp", "dim 0 over tp")
    assert placed["norm.weight"] == ("dim 0 over dp", "replicated")
    show_explanation(explanation)
    assert re.search(r"name +shape +stored +computed +local shape", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("model", "mesh", "lines"),
    some(
        ("gpt", "dp=2, tp=2", "zero 3 over dp { from 200B }"),
        ("gpt", "dp=2", "zero 1 over dp"),
        ("gpt", "dp=3", "zero 2 over dp"),
        ("llama", "tp=2, dp=2", "zero 3 over dp { keep forward }"),
        ("gpt2", "dp=2", "zero 3 over dp\nprecision { params fp32  compute bf16  reduce fp32 }"),
        ("gpt2", "dp=2, tp=2", "zero 3 over dp"),
        ("gpt", "dp=2", "zero 3 over dp { prefetch 3 }"),
        ("gpt", "dp=2", "zero 3 over dp { prefetch 0  bucket 1KB }"),
        ("gpt", "dp=2, cp=2", "shard inputs dim 1 over cp\nzero 3 over dp, cp"),
        ("llama", "dp=2, cp=2, tp=2", "shard inputs dim 1 over cp\nzero 3 over dp, cp { within cp }"),
        ("gpt", "dp=2, cp=2", "shard inputs dim 1 over cp\nzero 3 over dp, cp { within cp }\nrecompute \"blocks.*\""),
        ("gpt", "pp=2, dp=2, cp=2", "shard inputs dim 1 over cp\nzero 2 over dp, cp { within cp }\n"
         f"pipeline over pp {{ {PIPELINES[1]} }}"),
        *((model, "pp=2, dp=2", f"pipeline over pp {{ {pipeline} }}\nzero {level} over dp")
          for model in ("gpt", "llama") for pipeline in PIPELINES for level in (1, 2, 3)),
        ("gpt", "pp=2, dp=2, tp=2", f"pipeline over pp {{ {PIPELINES[1]} }}\nzero 2 over dp"),
    ),
)  # fmt: skip
def test_a_model_trains_as_on_one_device(model: str, mesh: str, lines: str) -> None:
    size = {**SIZE, "vocab": 41} if mesh == "dp=3" else SIZE
    case = MODELS[model](Size(batch=6, layers=2, **size)) if mesh == "dp=3" else _case(model)
    text = plan(model, mesh, *lines.split("\n"))
    assert_equal(case, text)
    assert prove(compiled(case, text).program).safe


def _layers_ahead(prefetch: int) -> int:
    """The most calls of layers between a gather and the call that takes it, in a GPT of four layers."""
    line = f"zero 3 over dp {{ prefetch {prefetch} }}"
    module = Module.parse(compiled(_case(layers=4), plan("gpt", "dp=2", line)).program.ir)
    calls, most = 0, 0
    started: dict[Value, int] = {}
    for op in operations(module.functions()["main"]):
        if op.operation.name == "comm.all_gather_start":
            started.update(dict.fromkeys(op.results, calls))
        elif op.operation.name == "comm.wait" and op.operands[0] in started:
            started[op.results[0]] = started[op.operands[0]]
        elif callee(op) is not None:
            most = max(most, *(calls - started[v] for v in op.operands if v in started), 0)
            calls += 1
    return most


@pytest.mark.parametrize("prefetch", some(2, 0, 1))
def test_a_layer_is_gathered_as_far_ahead_as_the_plan_says(prefetch: int) -> None:
    assert _layers_ahead(prefetch) == prefetch


@cache
def _wide(layers: int) -> Case:
    """A model whose parameters take most of the memory."""
    return MODELS["gpt"](Size(vocab=48, width=64, heads=4, head=16, inner=128, layers=layers, batch=2, seq=4))


def _layer_bytes() -> int:
    names = _wide(3).model.named_parameters()
    return sum(p.numel() for name, p in names if name.startswith("blocks.0.")) * BYTES


def _peak(layers: int, line: str) -> int:
    return prove(compiled(_wide(layers), f"mesh (dp={RANKS})\n{line}").program).peak_bytes


@pytest.mark.parametrize(
    ("line", "copies"),
    some(("zero 3 over dp", 2 / RANKS), ("", 2), ("zero 3 over dp { prefetch 0 }", 2 / RANKS), (STORE, 2 / RANKS)),
)
def test_another_layer_costs_its_parameters_and_gradients_once(line: str, copies: float) -> None:
    """The parts of both at level 3: whole ones live of as many layers, however many there are."""
    assert (_peak(5, line) - _peak(3, line)) / 2 == copies * _layer_bytes()


def test_a_layer_more_that_is_gathered_ahead_is_a_layer_more_in_memory() -> None:
    ahead = [f"zero 3 over dp {{ prefetch {count} }}" for count in (1, 2)]
    one, two = (_peak(5, f"{line}\noverlap {{ memory +1000% }}") for line in ahead)
    assert two - one == _layer_bytes()


def test_a_rank_stores_its_share_and_levels_differ_in_the_whole_parameters_that_it_holds() -> None:
    kept, gathered = (
        prove(compiled(_case(layers=4), plan("gpt", "dp=2", f"zero {level} over dp")).program).peak_bytes
        for level in (1, 3)
    )
    assert gathered < kept
