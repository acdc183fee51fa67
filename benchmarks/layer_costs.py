"""What the parts of a decoder take on one rank, from the simulated program of four of its layers.

Equal layers take equal time, so four are compiled: the second one's forward and backward stand for all. Degrees that
only repeat the program (data, pipeline, context and expert parallelism) are not compiled either, nor attention's shape;
`training_step.py` says what they add. So a program depends on sizes, tensor parallelism and the tokens of a microbatch
alone, and serves many rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from decoder import Decoder, Sizes
from stretto import Plan
from stretto.backends.simulator.events import CALLS, COMPUTE
from stretto.backends.simulator.kernels import Kind, Products
from stretto.backends.simulator.simulation import simulate
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.dsl.clusters.cluster import Cluster
from stretto.frontend.targets.fake_parameters import fake_parameters
from stretto.runtime.lanes.timeline import Task
from stretto.runtime.program.program import Program
from training_rows import Run

LAYERS = 4
HEADS = 8


@dataclass(frozen=True)
class Part:
    """A part of the work of a microbatch: seconds by kind of kernel and by axis, and how many kernels it has."""

    kernels: Counter[str] = field(default_factory=Counter)
    """Seconds by `Kind`."""
    collectives: Counter[str] = field(default_factory=Counter)
    """Seconds by axes."""
    launches: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(self.kernels + other.kernels, self.collectives + other.collectives, self.launches + other.launches)

    def times(self, factor: float) -> Part:
        """So many of it."""
        return Part(
            Counter({kind: seconds * factor for kind, seconds in self.kernels.items()}),
            Counter({axes: seconds * factor for axes, seconds in self.collectives.items()}),
            round(self.launches * factor),
        )

    def without_half_of_products(self) -> Part:
        """What selective recomputation runs again where it keeps attention and every second product."""
        kernels = {
            str(Kind.MEMORY): self.kernels[str(Kind.MEMORY)],
            str(Kind.MATMUL): self.kernels[str(Kind.MATMUL)] / 2,
        }
        return Part(Counter(kernels), Counter(), self.launches)

    def with_attention(self, seconds: float) -> Part:
        """The part with another price of attention."""
        return Part(Counter({**self.kernels, str(Kind.ATTENTION): seconds}), self.collectives, self.launches)


@dataclass(frozen=True)
class Costs:
    """The parts of a microbatch on one rank."""

    first: Part
    """In front of the layers: the embedding."""
    forward: Part
    """Of a layer."""
    head: Part
    """Between forward and backward: the head and the loss, with their backwards."""
    backward: Part
    """Of a layer."""
    last: Part
    """Behind the layers: the embedding's gradient, and what is left of the head's."""


def costs_of(run: Run, keep: Path | None = None) -> Costs:
    """The parts of a run's microbatch. Compiled programs are kept in the folder `keep`, and taken from there."""
    sizes = _alike(run)
    cluster = replace(run.cluster, nodes=1, gpus=max(run.cluster.gpus, run.tp))
    found = _costs(sizes, run.tp, run.sequence, cluster, run.stack.fused, Products.AS_STATED, keep)
    if not run.fp8:
        return found
    fp8 = _costs(sizes, run.tp, run.sequence, cluster, run.stack.fused, Products.FP8, keep)
    return replace(found, forward=fp8.forward, backward=fp8.backward)


def _alike(run: Run) -> Sizes:
    """The sizes that are compiled: those of another run, where only attention differs, which `training_step.py` prices.

    So the tokens of a microbatch are one row, and heads, where keys have as many, are as few as the ranks share.
    """
    sizes = run.sizes
    tokens = run.microbatch * sizes.tokens // run.cp
    if sizes.heads == sizes.key_heads and sizes.width % HEADS == 0 and HEADS % run.tp == 0:
        sizes = replace(sizes, heads=HEADS, key_heads=HEADS)
    return replace(sizes, layers=LAYERS, tokens=tokens)


@cache
def _costs(
    sizes: Sizes, tp: int, sequence: bool, cluster: Cluster, fused: bool, products: Products,
    keep: Path | None,
) -> Costs:  # fmt: skip
    program = _program(sizes, tp, sequence, keep)
    tasks = simulate(program, cluster, fuses=fused, products=products, keeps_tasks=True).tasks
    calls = sorted((task for task in tasks if task.lane == CALLS), key=lambda task: task.start)
    forwards, backwards = calls[:LAYERS], calls[-LAYERS:]
    assert len(calls) == 2 * LAYERS, f"{len(calls)} calls, not one each way for each layer"
    return Costs(
        _between(tasks, 0.0, forwards[0].start),
        _between(tasks, forwards[1].start, forwards[2].start),
        _between(tasks, forwards[-1].end, backwards[0].start),
        _between(tasks, backwards[1].start, backwards[2].start),
        _between(tasks, backwards[-1].end, float("inf")),
    )


def saved_bytes(run: Run, keep: Path | None = None) -> int:
    """What a layer's backward reads of its forward, of a microbatch: results whose dims are those of tokens."""
    sizes = _alike(run)
    program = _program(sizes, run.tp, run.sequence, keep)
    name = next(each for each in program.functions if each.endswith("forward"))
    function = program.functions[name]
    saved = 0
    for slot in sorted({*function.results[1:]}):
        index = function.types[slot]
        shape = () if index is None else program.types[index].shape
        tokens = sizes.tokens // (run.tp if run.sequence else 1)
        if index is not None and {sizes.tokens, tokens} & {*shape}:
            saved += program.types[index].bytes
    return saved


def _between(tasks: Iterable[Task], start: float, end: float) -> Part:
    part = Part()
    launches = 0
    for task in tasks:
        if task.lane == CALLS or not start - 1e-12 <= task.start < end - 1e-12:
            continue
        launches += 1
        (part.kernels if task.lane == COMPUTE else part.collectives)[task.name if task.lane == COMPUTE else "tp"] += (
            task.end - task.start
        )
    return replace(part, launches=launches)


def plan_of(tp: int, *, sequence: bool) -> str:
    """The plan of tensor parallelism."""
    lines = [f"mesh (tp={tp})"]
    if tp > 1:
        lines += [
            'shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp',
            'shard "*.o_proj", "*.down_proj" rows over tp',
            'shard "embed_tokens", "lm_head" vocab over tp',
        ]
        lines += ["shard activations tokens over tp"] if sequence else []
    return "\n".join([*lines, "precision { compute bf16 }"])


def _program(sizes: Sizes, tp: int, sequence: bool, keep: Path | None) -> Program:
    plan = plan_of(tp, sequence=sequence)
    name = hashlib.sha256(f"{sizes} {plan}".encode()).hexdigest()[:16]
    if keep is not None and (keep / name).exists():
        return Program.load(keep / name)
    with fake_parameters():
        model = Decoder(sizes)
    tokens = torch.zeros(1, 1, dtype=torch.int64).expand(1, sizes.tokens)
    options = Options(loss_only=True, keep_weights=False)
    request = CompileRequest.of(model, (tokens, tokens), {}, Plan.parse(plan), options)
    program = compile_program(request).program
    if keep is not None:
        program.save(keep / name)
    return program
