"""A step of a program on a cluster: the time of one rank of each stage, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ...costs.kernels.gpu import gpu as find_gpu
from ...costs.kernels.memory_bound import moved_seconds
from ...dsl.clusters.cluster import Cluster
from ...runtime.errors import ProgramError
from ...runtime.lanes.timeline import Task
from ...runtime.program.arguments import DTYPES
from ...runtime.program.entries import Entry
from ...runtime.program.program import Program
from ...runtime.program.records import Input, Output
from ...runtime.prover.analysis import Analysis
from ...runtime.prover.slots import check_slots
from ...runtime.prover.summary import Summary
from ...runtime.prover.types import Types
from ...runtime.prover.values import Refuted
from ...runtime.rank.shards import local_shape
from .calls import Spent
from .events import Messages, Rank
from .kernels import Products
from .layout import Layout
from .steps import FunctionSteps

ISSUE_SECONDS = 5e-6
"""What the thread of a rank takes to issue one kernel: what a launch of CUDA costs, and little of Python."""
ADAMW_BYTES = 28
"""What AdamW moves for each element, all in float32: parameter, gradient and two states are read, three are written."""
STATE_BYTES = 8
"""What AdamW keeps for each element: two states in float32."""


@dataclass(frozen=True)
class StageTime:
    """One rank of a stage, or of a program without stages."""

    stage: int
    spent: Spent
    optimizer: float
    """Seconds of AdamW behind the step."""
    peak_bytes: int
    """The peak of live tensors by the prover, and AdamW's states."""
    stored: Mapping[str, int]
    """Of the peak, the bytes of what a rank keeps from step to step, and of its gradients, by kind."""

    @property
    def working_bytes(self) -> int:
        """The rest of the peak: activations, inputs, what is gathered, and buffers of communication.

        Gradients that are not there yet at the peak count in it: it may be that much too small.
        """
        return self.peak_bytes - sum(self.stored.values())

    @property
    def seconds(self) -> float:
        """From the start of the step until the optimizer's end."""
        return self.spent.end + self.optimizer


@dataclass(frozen=True)
class Simulation:
    """A step of a program on a cluster."""

    cluster: Cluster
    ranks: int
    stages: tuple[StageTime, ...]
    tokens: int | None
    """Tokens of the global batch, where the first input is a matrix of integers."""
    memory_bytes: float
    """Of one GPU."""
    tasks: tuple[Task, ...] = ()
    """What ran when, where it was asked for."""
    walked: int = 0
    """The steps of functions that were walked, those of equal calls once."""

    @property
    def slowest(self) -> StageTime:
        """The stage that ends last."""
        return max(self.stages, key=lambda stage: stage.seconds)

    @property
    def seconds(self) -> float:
        """The step: until the last stage's optimizer ends."""
        return self.slowest.seconds

    @property
    def utilization(self) -> float:
        """HFU: what all products that run, recomputed ones too, would take at their formats' peaks, over the step."""
        return sum(stage.spent.at_peak for stage in self.stages) / len(self.stages) / self.seconds


def simulate(
    program: Program, cluster: Cluster, *, fuses: bool = True, products: Products = Products.AS_STATED,
    keeps_tasks: bool = False,
) -> Simulation:  # fmt: skip
    """Simulate one step; without `fuses` each instruction is a kernel of its own, and `products` has a format.

    Errors: E0801 and E0802 of the GPU, E0804 and E0806 of the cluster, E0807 where slots have no types, E0808 where a
    stage waits for ever, or the prover's walk of an entry finds a fault. The order of ranks is not proved.
    """
    program = program.validated
    device = find_gpu(cluster.gpu)
    layout = Layout(program.mesh, cluster, device)
    if not all(function.types for function in program.functions.values()):
        raise ProgramError("E0807", "the program does not state the types of its slots", help="compile it again")
    found = {
        name: FunctionSteps(program, function, device, fuses=fuses, products=products).steps
        for name, function in program.functions.items()
    }
    slots = {name: (function.arguments, function.results) for name, function in program.functions.items()}
    peaks = _peaks(program)
    messages: Messages = {}
    entries = program.entries
    places = [f"{each.module} {each.file}:{each.line}".strip() for each in program.locations] if keeps_tasks else None
    ranks = [Rank(found, slots, layout, entry.stage or 0, messages, ISSUE_SECONDS, places) for entry in entries]
    _run(ranks, entries)
    stages = tuple(
        StageTime(
            entry.stage or 0, rank.spent, float(moved_seconds(ADAMW_BYTES * trained, device)) if trained else 0.0,
            peaks[entry.stage or 0] + STATE_BYTES * trained, _stored(entry, STATE_BYTES * trained),
        )
        for rank, entry in zip(ranks, entries, strict=True)
        for trained in [_trained(entry) if program.manifest.mode == "train" else 0]
    )  # fmt: skip
    return Simulation(
        cluster,
        program.mesh.ranks,
        stages,
        _tokens(program),
        device.memory_bytes,
        tuple(task for rank in ranks for task in rank.tasks),
        sum(rank.walked for rank in ranks),
    )


def _run(ranks: Sequence[Rank], entries: Sequence[Entry]) -> None:
    """Run all walks until they end, each until it waits for a message that another has not sent. Raises E0808."""
    running = [(rank, rank.run(entry.name)) for rank, entry in zip(ranks, entries, strict=True)]
    arrived = -1
    while running:
        still = [(rank, walk) for rank, walk in running if next(walk, _END) is not _END]
        before, arrived = arrived, sum(rank.arrived for rank in ranks)
        if len(still) == len(running) and before == arrived:
            stages = " and ".join(str(rank.stage) for rank, _ in still)
            raise _unsafe(f"stage {stages} waits for a message that is never sent")
        running = still


_END = object()


def _unsafe(what: str) -> ProgramError:
    message = f"the program is not safe to run: {what}"
    return ProgramError("E0808", message, help='"stretto verify DIR" shows the instructions')


def _trained(entry: Entry) -> int:
    """The elements of trained parameters that a rank stores."""
    return sum(
        prod(local_shape(each.shape, each.shards))
        for each in entry.inputs
        if each.kind == "parameter" and each.requires_grad
    )


def _stored(entry: Entry, states: int) -> dict[str, int]:
    """The bytes of a rank's part of parameters, gradients and the rest that it keeps, by kind."""
    kept = {"parameters": ("parameter",), "buffers and constants": ("buffer", "constant", "state")}
    found = {
        name: sum(_local_bytes(each) for each in entry.inputs if each.kind in kinds) for name, kinds in kept.items()
    }
    found["gradients"] = sum(map(_local_bytes, entry.gradients))
    found["optimizer (AdamW, states in float32)"] = states
    return {name: nbytes for name, nbytes in found.items() if nbytes}


def _local_bytes(record: Input | Output) -> int:
    return prod(local_shape(record.shape, record.shards)) * DTYPES[record.dtype].itemsize


def _tokens(program: Program) -> int | None:
    users = [each for each in program.inputs if each.kind == "input"]
    if users and len(users[0].shape) == 2 and users[0].dtype.startswith("int"):
        return prod(users[0].shape)
    return None


def _peaks(program: Program) -> Mapping[int, int]:
    """By stage: the peak of live tensors in bytes, by the prover's walk of its entry. Raises E0808."""
    analysis = Analysis(program.mesh, Types.STATED)
    try:
        check_slots(program)
        return {
            entry.stage or 0: analysis.input_bytes(program, entry) + _summary(analysis, program, entry).peak_bytes
            for entry in program.entries
        }
    except Refuted as refuted:
        raise _unsafe(refuted.message) from None


def _summary(analysis: Analysis, program: Program, entry: Entry) -> Summary:
    """Raises Refuted for whatever the walk finds."""
    summary, refuted = analysis.program(program, entry)
    if refuted is not None:
        raise refuted
    return summary
