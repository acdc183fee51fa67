"""The predicted time of a published training step: its parts, composed by the run's degrees of parallelism.

- A pipeline runs the tasks of its schedule, the same that programs have, each as long as its stage's layers take.
- Data parallelism adds its collectives, which the software hides beside computing or not, and the optimizer.
- Context parallelism leaves a rank a part of the tokens, whose attention reads all keys; experts exchange their rows.
- Where activations are computed again, a layer's backward has its forward in it.

`Fit` has the named constants that are fitted on such rows; everything else is priced by `stretto.costs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, log2
from pathlib import Path

from layer_costs import Costs, Part, costs_of
from stretto.backends.simulator.kernels import BACKWARD, Kind
from stretto.backends.simulator.layout import Layout
from stretto.backends.simulator.simulation import ADAMW_BYTES
from stretto.costs.kernels.attention import attention_seconds
from stretto.costs.kernels.gpu import Gpu, gpu
from stretto.costs.kernels.matmul import batched_matmul_seconds
from stretto.costs.kernels.memory_bound import moved_seconds
from stretto.runtime.program.mesh import RankMesh
from stretto.schedules.catalogue import generate
from stretto.schedules.request import Request
from stretto.schedules.schedule import Kind as TaskKind
from stretto.schedules.schedule import Order, Schedule
from training_rows import Run


@dataclass(frozen=True)
class Fit:
    """Constants that are fitted on training rows, and nothing of a row, a model or a source."""

    clock_ampere: float = 1.0
    """The share of the speed of products in a measured kernel that a long step sustains, on an A100."""
    clock_hopper: float = 1.0
    """On an H100."""
    memory: float = 1.0
    """The same share of what only moves bytes."""
    launch_us: float = 5.0
    """From the issue of one kernel to the next (microseconds)."""
    interference: float = 0.0
    """The share of hidden communication by which computing takes longer."""
    doubling: float = 0.0
    """By what share a step takes longer for each doubling of the nodes: the slowest of many."""


FITTED = Fit(clock_ampere=0.985, clock_hopper=0.854, memory=1.1, launch_us=5.3, interference=0.017, doubling=0.0067)
"""By `fit_training.py`, on the rows of `published/training.csv`."""


def step_seconds(run: Run, fit: Fit, keep: Path | None = None) -> float:
    """The predicted time of an optimizer step."""
    return Step(run, fit, costs_of(run, keep)).seconds


class Step:
    """A step of a run."""

    def __init__(self, run: Run, fit: Fit, costs: Costs) -> None:
        self._run, self._fit, self._costs = run, fit, costs
        self._gpu: Gpu = gpu(run.cluster.gpu)
        axes = (("pp", run.pp), ("dp", run.dp), ("cp", run.cp), ("tp", run.tp))
        self._layout = Layout(RankMesh(axes), run.cluster, self._gpu)
        self._attention, self._exchange = self._attention_seconds(), self._exchanged()
        self._forward, self._backward = self._layer(costs)

    @property
    def _is_hopper(self) -> bool:
        return "fp8" in self._gpu.peaks

    @property
    def _clock(self) -> float:
        """The share of the speed of products that a long step sustains, under the run's limit of power."""
        share = self._fit.clock_hopper if self._is_hopper else self._fit.clock_ampere
        return share * (self._run.watts / WATTS) ** (1 / 3) if self._run.watts else share

    def at(self, fit: Fit) -> float:
        """The step with other constants."""
        self._fit = fit
        self._forward, self._backward = self._layer(self._costs)
        return self.seconds

    @property
    def seconds(self) -> float:
        """From the start of the step to the optimizer's end."""
        run = self._run
        head = self._time(self._costs.head) + self._time(self._costs.last)
        first = self._time(self._costs.first)
        if run.pp > 1:
            work, tail = self._pipelined(first, head), self._backward * run.sizes.layers / run.pp
        else:
            layers = run.sizes.layers * (self._forward + self._backward)
            work, tail = run.microbatches * (layers + first + head), self._backward * run.sizes.layers
        whole = work + self._data_parallel(tail) + self._optimizer()
        return whole * (1 + self._fit.doubling * log2(max(run.cluster.nodes, 1)))

    def _time(self, part: Part) -> float:
        """A part on its lane: hidden communication costs its share of interference."""
        memory = part.kernels[str(Kind.MEMORY)]
        products = sum(part.kernels.values()) - memory
        computed = products / self._clock + memory / self._fit.memory
        sent = sum(part.collectives.values())
        # Transformer Engine hides the collectives of dense layers; those around experts are in line.
        hides = "tensor" in self._run.stack.hides and not self._run.experts
        hidden = min(sent, computed) if hides else 0.0
        busy = computed + sent - hidden * (1 - self._fit.interference)
        return max(busy, part.launches * self._fit.launch_us * 1e-6)

    def _layer(self, costs: Costs) -> tuple[float, float]:
        """The forward and the backward of a layer, with what its degrees add."""
        run = self._run
        forward, again = self._attention
        one, other = costs.forward.with_attention(forward), costs.backward.with_attention(again)
        if run.recompute == "full":
            other = one + other
        if run.recompute == "selective" and run.stack.selective == "products":
            other = one.without_half_of_products() + other
        added = self._exchange + self._ring()
        ahead, back = self._time(one) + added, self._time(other) + added * (2 if run.recompute == "full" else 1)
        if run.zero == 3 and run.zero_ranks > 1:
            gathered = self._collective("all_gather", 2 * layer_elements(self._run))
            reduced = self._collective("reduce_scatter", run.stack.reduce_bytes * layer_elements(self._run))
            return self._beside(ahead, gathered, "gather"), self._beside(back, gathered + reduced, "reduce")
        return ahead, back

    def _beside(self, computed: float, sent: float, kind: str) -> float:
        """Computing, and communication that hides beside it where the software says so."""
        if kind not in self._run.stack.hides:
            return computed + sent
        return max(computed + self._fit.interference * min(sent, computed), sent)

    def _attention_seconds(self) -> tuple[float, float]:
        """A layer's attention, forward and backward, in seconds: a rank's queries read all keys."""
        run, sizes = self._run, self._run.sizes
        again = run.recompute == "selective" and run.stack.selective == "attention"
        heads, key_heads = sizes.heads / run.tp, max(sizes.key_heads / run.tp, 1)
        queries, keys, size = sizes.tokens / run.cp, sizes.tokens, sizes.width / sizes.heads
        if run.stack.attention != "products":
            one = SLOWER[run.stack.attention][self._is_hopper] * float(
                attention_seconds(run.microbatch, queries, keys, heads, key_heads, size, True, "bf16", self._gpu)
            )
            return one, one * BACKWARD + (one if again else 0.0)
        batch = run.microbatch * heads
        product = float(batched_matmul_seconds(batch, queries, keys, size, "bf16", self._gpu))
        other = float(batched_matmul_seconds(batch, queries, size, keys, "bf16", self._gpu))
        scores = 2 * batch * queries * keys
        one = product + other + float(moved_seconds(SOFTMAX_FORWARD * scores, self._gpu))
        back = 2 * (product + other) + float(moved_seconds(SOFTMAX_BACKWARD * scores, self._gpu))
        return one, back + (one if again else 0.0)

    def _exchanged(self) -> float:
        """Experts: each token's rows are sorted, go to the ranks of its experts, come back, and are sorted back."""
        run = self._run
        if not run.experts:
            return 0.0
        tokens = run.microbatch * run.sizes.tokens / run.cp / (run.tp if run.sequence else 1)
        axes = (("pp", run.pp), ("odp", max(run.dp * run.cp // run.ep, 1)), ("ep", run.ep), ("tp", run.tp))
        layout = Layout(RankMesh(axes), run.cluster, self._gpu)
        nbytes = 2 * tokens * run.chosen * run.sizes.width
        rows = nbytes * (run.tp if run.sequence else 1)  # gathered over the ranks of tensor parallelism
        return 2 * layout.collective_seconds("all_to_all", ("ep",), nbytes) + float(
            moved_seconds(4 * (nbytes + rows), self._gpu)
        )

    def _ring(self) -> float:
        """Context parallelism: keys and values go round, beside attention where the software says so."""
        run, sizes = self._run, self._run.sizes
        if run.cp == 1:
            return 0.0
        size = sizes.width / sizes.heads * max(sizes.key_heads / run.tp, 1)
        sent = (run.cp - 1) * self._layout.collective_seconds(
            "permute", ("cp",), 4 * run.microbatch * sizes.tokens / run.cp * size
        )
        return sent * self._fit.interference if "ring" in run.stack.hides else sent

    def _pipelined(self, first: float, head: float) -> float:
        """The tasks of the schedule, each stage at its own time."""
        run = self._run
        stages = run.pp * run.chunks
        layers = _layers(run, stages, (first + head) / (self._forward + self._backward))
        ends = [(first / 3, 2 * first / 3)] + [(0.0, 0.0)] * (stages - 2) + [(head / 3, 2 * head / 3)]
        if run.vocabulary == "shared":
            ends = [((first + head) / 3 / run.pp, 2 * (first + head) / 3 / run.pp)] * stages
        forwards = [n * self._forward + end[0] for n, end in zip(layers, ends, strict=True)]
        backwards = [n * self._backward + end[1] for n, end in zip(layers, ends, strict=True)]
        tokens = run.microbatch * run.sizes.tokens / run.cp / run.tp
        across = self._layout.crosses_nodes("pp", 0, 1)
        message = self._layout.message_seconds(2 * tokens * run.sizes.width, between_nodes=across)
        if not run.sequence and run.tp > 1:  # each rank sends its part, and the parts are gathered in the node
            message += self._layout.collective_seconds("all_gather", ("tp",), 2 * tokens * run.tp * run.sizes.width)
        hides = "pipeline" in run.stack.hides

        def end(microbatches: int) -> float:
            order = _schedule(run.schedule, run.pp, microbatches, run.chunks).order
            return makespan(order, forwards, backwards, run.pp, message, hides=hides)

        few = 2 * run.pp + run.microbatches % run.pp
        if run.microbatches <= few + run.pp:
            return end(run.microbatches)
        rounds = (run.microbatches - few) // run.pp  # of the steady part, each as long as the others
        return end(few) + rounds * (end(few + run.pp) - end(few))

    def _data_parallel(self, tail: float) -> float:
        """What the collectives of gradients and parameters add to a step, once."""
        run = self._run
        if run.dp * run.cp == 1 or (run.zero == 3 and run.zero_ranks > 1):
            return 0.0
        elements = self._stored_elements()
        reduced = self._collective("reduce_scatter", run.stack.reduce_bytes * elements)
        gathered = self._collective("all_gather", (2 if run.zero else run.stack.reduce_bytes) * elements)
        found = 0.0
        for kind, sent in (("reduce", reduced), ("gather", gathered)):
            hidden = min(sent, tail) if kind in run.stack.hides else 0.0
            found += sent - hidden * (1 - self._fit.interference)
        return found

    def _collective(self, kind: str, nbytes: float) -> float:
        """A collective of data parallelism: one, or one for each rank that owns whole tensors.

        Gradients are reduced over all ranks, parameters gathered by those that share them.
        """
        run = self._run
        axes = ("dp", "cp") if run.cp > 1 else ("dp",)
        layout, ranks = self._layout, run.dp * run.cp
        if kind == "all_gather" and run.zero and run.zero_ranks < ranks:
            inner = (("pp", run.pp), ("outer", ranks // run.zero_ranks), ("zero", run.zero_ranks), ("tp", run.tp))
            layout, axes = Layout(RankMesh(inner), run.cluster, self._gpu), ("zero",)
        owners = min(run.zero_ranks, TENSORS * run.sizes.layers / run.pp) if run.zero and run.stack.owners else 1
        return owners * layout.collective_seconds(kind, axes, nbytes / owners)

    def _optimizer(self) -> float:
        run = self._run
        shared = run.zero_ranks if run.zero else 1
        return float(moved_seconds(ADAMW_BYTES * self._stored_elements() / shared, self._gpu)) / self._fit.memory

    def _stored_elements(self) -> float:
        """Parameters that a rank stores before any of ZeRO: of a stage in the middle, or of all."""
        run, s = self._run, self._run.sizes
        ends = 2 * s.vocabulary * s.width / run.tp
        return layer_elements(self._run) * s.layers / run.pp + (ends if run.pp == 1 else ends / 2)


SLOWER = {"library": (1.0, 1.0), "flash-2": (1.0, 1.75), "flash-1": (2.0, 3.5)}
"""How much longer than the kernels that were measured an attention kernel takes, before Hopper and on it.

Sources: FlashAttention-2 is about 2 times as fast as FlashAttention (arXiv 2307.08691, abstract); FlashAttention-3 is
1.5 to 2 times as fast as FlashAttention-2 on Hopper (arXiv 2407.08608, abstract). The measured kernels are newer.
"""
WATTS = 700
"""Of an H100 SXM by its data sheet. Under a lower limit its clock goes with the cube root of the power.

Source: power is capacity x voltage^2 x clock, and voltage goes with the clock (Chandrakasan et al., JSSC 1992).
"""
TENSORS = 7
"""Of a layer: two projections of attention, three of the feed-forward, two norms."""
SOFTMAX_FORWARD = 4
"""How often a fused scale-mask-softmax and dropout move the scores: both read and write them."""
SOFTMAX_BACKWARD = 6
"""In the backward: dropout reads and writes; the softmax reads its result and gradient, and writes; the scale."""


def _layers(run: Run, stages: int, ends: float) -> list[float]:
    """The layers of each stage; where the ends are balanced, they take the place of so many layers."""
    if run.vocabulary != "balanced":
        few, rest = divmod(run.sizes.layers, stages)
        return [few + (1 if stage < rest else 0) for stage in range(stages)]
    fair = (run.sizes.layers + ends) / stages
    last = max(min(ceil(fair - ends), ceil(fair)), 0)
    each, rest = divmod(run.sizes.layers - last, stages - 1)
    return [each + (1 if stage < rest else 0) for stage in range(stages - 1)] + [last]


def layer_elements(run: Run) -> float:
    """Parameters of a layer on a rank; of experts those that the rank has."""
    s = run.sizes
    size = s.width // s.heads
    gates = 3 if s.activation in ("swiglu", "geglu") else 2
    ffn = gates * s.width * s.ffn * (run.experts / run.ep / run.chosen if run.experts else 1)
    return (2 * s.width * s.heads * size + 2 * s.width * s.key_heads * size + ffn) / run.tp


def schedule_of(run: Run) -> Schedule:
    """The schedule of a run's pipeline, with as many microbatches as fill it."""
    filled = 2 * run.pp + run.microbatches % run.pp
    return _schedule(run.schedule, run.pp, min(run.microbatches, filled), run.chunks)


@cache
def _schedule(name: str, ranks: int, microbatches: int, chunks: int) -> Schedule:
    return generate(name, Request(ranks, microbatches, chunks if name == "interleaved" else None))


def makespan(
    order: Order, forwards: Sequence[float], backwards: Sequence[float], ranks: int, message: float, *, hides: bool
) -> float:
    """The end of forwards and backwards whose stages take unlike times; stage s is on rank s mod `ranks`.

    Without `hides` a rank waits for each message that it sends.
    """
    last = len(forwards) - 1
    ends: dict[tuple[bool, int, int], float] = {}
    clocks, positions = [0.0] * ranks, [0] * ranks
    moved = True
    while moved:
        moved = False
        for rank, tasks in enumerate(order):
            while positions[rank] < len(tasks):
                kind, stage, microbatch = tasks[positions[rank]]
                ahead = kind is TaskKind.F
                source = stage - 1 if ahead else stage + 1
                ready = 0.0
                if 0 <= source <= last:
                    found = ends.get((ahead, source, microbatch))
                    if found is None:
                        break
                    ready = found + (message if ranks > 1 else 0.0)
                clocks[rank] = max(clocks[rank], ready) + (forwards if ahead else backwards)[stage]
                ends[ahead, stage, microbatch] = clocks[rank]
                clocks[rank] += 0.0 if hides or not 0 <= (stage + 1 if ahead else stage - 1) <= last else message
                positions[rank] += 1
                moved = True
    return max(clocks)
