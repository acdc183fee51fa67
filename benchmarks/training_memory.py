"""The predicted peak memory of a published training run: states, activations and what the software adds.

- States: bytes of a parameter that each rank keeps, and bytes that ZeRO shards; the stack's file says both.
- Activations: what the backward of a layer reads, from the types of the compiled layer; as many microbatches at once as
  the schedule keeps. Where layers are computed again, their inputs and one layer's activations.
- The head: logits in 16 bits and in float32, and their gradient.
- Overheads: what the driver and the libraries take, where the row's figure is that of nvidia-smi.
"""

from __future__ import annotations

from pathlib import Path

from layer_costs import saved_bytes
from stretto.schedules.figures import peaks
from training_rows import Run
from training_step import layer_elements, schedule_of

CONTEXT_BYTES = 1.3e9
"""What the driver, and the kernels that are loaded, take beside tensors.

Source: Hugging Face, "Model training anatomy" (1.3 GB before any tensor of a model is made).
"""
GROUPS = 6
"""Communicators: of all ranks, of tensor, pipeline and data parallelism, of the embedding, of both neighbours."""
GROUP_BYTES = 16 * 9.4 * 2**20
"""Of NCCL's buffers for a communicator: on each of 16 channels 4 MiB, and those of its protocols for short messages.

Source: NVIDIA, NCCL user guide, NCCL_BUFFSIZE; the other two protocols are in NVIDIA/nccl, src/include/devcomm.h.
"""
SCORE_BYTES = 5
"""Of a score of unfused attention: two 16-bit results and a mask of dropout (arXiv 2205.05198, section 4.1)."""
LOGIT_BYTES = {"fused": 2 + 4 + 4, "torch": 2 + 4 + 4 + 4}
"""Of a logit: as computed, in float32 for the loss, and its gradient. torch has two gradients in float32 at once: those
of the negative log-likelihood and of the log-softmax.

Source: pytorch/pytorch, tools/autograd/derivatives.yaml, nll_loss_forward and _log_softmax.
"""


def peak_bytes(run: Run, basis: str, keep: Path | None = None) -> float:
    """The peak of the rank that needs most; `basis` is the row's word for how its peak was measured."""
    context = CONTEXT_BYTES + GROUPS * GROUP_BYTES if "smi" in basis else 0.0
    return max(_stage_bytes(run, stage, keep) for stage in (0, run.pp - 1)) + context + run.stack.buffer_bytes


def _stage_bytes(run: Run, stage: int, keep: Path | None) -> float:
    sizes = run.sizes
    table = sizes.vocabulary * sizes.width / run.tp
    shared = run.vocabulary == "shared"
    ends = 2 * table / run.pp if shared else table * ((stage == 0) + (stage == run.pp - 1))
    parameters = layer_elements(run) * sizes.layers / run.pp + ends
    ranks = run.zero_ranks if run.zero else 1
    states = parameters * (run.stack.whole_bytes + run.stack.sharded_bytes / ranks)
    tokens = run.microbatch * sizes.tokens / run.cp
    layers = sizes.layers / run.pp
    whole = saved_bytes(run, keep)
    kept, working = (whole, 0.0)
    if run.recompute == "full":
        kept, working = 2 * tokens * sizes.width / (run.tp if run.sequence else 1), whole
    if run.recompute == "selective" and run.stack.selective == "products":
        kept, working = _every_second_product(run), whole
    if run.stack.attention == "products" and run.recompute != "none":
        working += SCORE_BYTES * run.microbatch * sizes.heads / run.tp * sizes.tokens**2
    alive = peaks(schedule_of(run))[stage] if run.pp > 1 else 1.0
    boundary = 2 * tokens * sizes.width if run.stack.keeps_outputs and run.pp > 1 and stage < run.pp - 1 else 0.0
    logits = LOGIT_BYTES[run.stack.loss] * tokens * sizes.vocabulary / run.tp if shared or stage == run.pp - 1 else 0.0
    if shared:
        logits /= run.pp
    gathered = 2 * 2 * layer_elements(run) if run.zero == 3 else 0.0
    return states + gathered + (kept * layers + boundary) * alive + working + logits


def _every_second_product(run: Run) -> float:
    """What of a layer is kept where attention and every second product are: q, v, gate, down; and its input."""
    sizes = run.sizes
    size = sizes.width // sizes.heads
    tokens = run.microbatch * sizes.tokens / run.cp
    inside = 2 * tokens * (2 * sizes.width + size * sizes.key_heads + sizes.ffn) / run.tp  # attention, q, v, gate
    return inside + 2 * 2 * tokens * sizes.width / (run.tp if run.sequence else 1)
