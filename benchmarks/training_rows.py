"""The rows of a table of published training runs, as values: sizes of a decoder, degrees, cluster and software.

Columns that say the sizes: n_layers, d_model, n_heads, n_kv_heads, d_ffn or d_ffn_expert, ffn_act, vocab, seq_len,
n_experts, top_k. That say the plan: tp, pp, vpp, dp, cp, ep, seq_parallel, schedule, mbs, gbs, precision, zero_stage,
recompute, compile. That say the machine: gpu, n_gpus, gpus_per_node, internode_gbps_per_gpu. That say what ran:
framework. That say what was measured: step_time_s, tok_s_gpu, or tflops_per_gpu with tflops_kind; outcome.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from decoder import Sizes
from stretto.dsl.clusters.cluster import Cluster

STACKS = Path(__file__).parent / "stacks"
NETWORK_GB_S = {"V100": 12.5, "A100": 25.0, "H100": 50.0, "H200": 50.0}
"""GB/s of a GPU's network link where a row does not say: its usual nodes have 8 links of 100, 200 or 400 Gb/s."""
SCHEDULES = {"none": "1f1b", "": "1f1b", "1F1B": "1f1b", "interleaved 1F1B": "interleaved"}
"""By the word of a row, the schedule of a pipeline."""
SC21 = "96BsLh^2"
"""How a row names the FLOPs of a step with recomputation by Megatron-LM: arXiv 2104.04473, section 5.1."""
VOCABULARY = {"1F1B baseline": "ends", "1F1B redis": "balanced", "1F1B vocab-1": "shared", "1F1B vocab-2": "shared"}
"""By the word of a row, where the layers of the vocabulary are: all of these are 1F1B."""


class Skipped(Exception):
    """Why a row cannot be expressed."""


@dataclass(frozen=True)
class Stack:
    """Facts of a training software, documented or recalled (docs/simulator.md). Nothing here is fitted."""

    name: str
    source: str
    fused: bool
    """Whether what only moves bytes between products is one kernel."""
    attention: str
    """library, flash-2, flash-1: one kernel that keeps no scores. products: two, and a softmax kernel between them."""
    hides: frozenset[str]
    """Communication that runs beside computing: tensor, reduce and gather (of data parallelism), pipeline, ring."""
    reduce_bytes: int
    """Of an element of a gradient, where it is reduced over data-parallel ranks; 2 in a row of PURE precision."""
    selective: str
    """What selective recomputation computes again: attention, or products, every second one and all but attention."""
    buffer_bytes: float
    """Of buffers for collectives."""
    whole_bytes: float
    """Of a parameter, that each data-parallel rank keeps."""
    sharded_bytes: float
    """Of a parameter, that ZeRO shards over ranks."""
    loss: str = "fused"
    """fused, or torch: whose cross-entropy has two gradients of the logits at once."""
    keeps_outputs: bool = False
    """Whether a stage keeps its output of each microbatch until its backward."""
    owners: bool = False
    """Whether ZeRO gives whole tensors to ranks, which reduce and broadcast them, a collective for each rank."""


@dataclass(frozen=True)
class Run:
    """A published run."""

    sizes: Sizes
    tp: int
    pp: int
    chunks: int
    dp: int
    cp: int
    ep: int
    sequence: bool
    """Whether activations between the blocks are cut over the ranks of tensor parallelism."""
    schedule: str
    vocabulary: str
    """ends, balanced or shared: which stages compute the layers of the vocabulary."""
    microbatch: int
    microbatches: int
    """Of a rank in a step."""
    zero: int
    zero_ranks: int
    """Ranks that share what ZeRO shards."""
    recompute: str
    """none, full, or selective, as the stack's file says."""
    fp8: bool
    experts: int
    chosen: int
    """Experts of a token; 1 without experts."""
    cluster: Cluster
    stack: Stack
    watts: float | None = None
    """To which the power of a GPU is limited, where the row says so."""


def run_of(row: Mapping[str, str]) -> Run:
    """The run of a row. Raises Skipped where it cannot be expressed."""
    if row["outcome"] != "ok":
        raise Skipped("it ran out of memory")
    if row["schedule"] not in (*SCHEDULES, *VOCABULARY):
        raise Skipped(f"the schedule {row['schedule']} is not built by this script")
    if row["recompute"] not in ("none", "full", "selective"):
        raise Skipped(f"what is computed again is {row['recompute'] or 'not stated'}")
    tp, pp, dp, cp = (_integer(row, key, 1) for key in ("tp", "pp", "dp", "cp"))
    chunks = _integer(row, "vpp", 1) if pp > 1 else 1
    microbatch, experts = _integer(row, "mbs"), _integer(row, "n_experts", 0)
    schedule = "interleaved" if chunks > 1 else "1f1b"
    chosen = _integer(row, "top_k") if experts else 1
    ffn = _integer(row, "d_ffn_expert") * chosen if experts else _integer(row, "d_ffn")
    if row["ffn_act"] not in ("gelu", "swiglu", "geglu", "sqrelu"):
        raise Skipped(f"the activation is {row['ffn_act'] or 'not stated'}")
    sizes = Sizes(
        _integer(row, "n_layers"), _integer(row, "d_model"), _integer(row, "n_heads"),
        _integer(row, "n_kv_heads", _integer(row, "n_heads")), ffn, row["ffn_act"],
        _padded(_integer(row, "vocab"), tp), _integer(row, "seq_len"),
    )  # fmt: skip
    if sizes.layers % (pp * chunks) and chunks > 1:
        raise Skipped(f"{sizes.layers} layers do not fill {pp} x {chunks} parts of a pipeline")
    zero = int(row["zero_stage"][:1]) if row["zero_stage"][:1].isdigit() else 0
    within = re.search(r"(?:within |FSDP=)(\d+)", row["zero_stage"])
    zero_ranks = min(int(within[1]), dp * cp) if within else dp * cp
    return Run(
        sizes, tp, pp, chunks, dp, cp, _integer(row, "ep", 1), row["seq_parallel"] == "yes" and tp > 1, schedule,
        VOCABULARY.get(row["schedule"], "ends"), microbatch, max(_integer(row, "gbs") // (microbatch * dp), 1),
        zero, zero_ranks, row["recompute"], _is_fp8(row["precision"]), experts, chosen,
        _cluster(row), _stack(row), _watts(row["gpu"]),
    )  # fmt: skip


def _is_fp8(precision: str) -> bool:
    """Whether products are in 8 bits. Raises Skipped for formats of 4 bits."""
    if "fp4" in precision.lower():
        raise Skipped(f"products in {precision} are not priced")
    return "fp8" in precision.lower() or precision == "float8"


def measured_seconds(row: Mapping[str, str]) -> float:
    """The published time of a step, or what follows from tokens a second, or from FLOP/s by a stated formula."""
    if row["step_time_s"]:
        return float(row["step_time_s"])
    tokens = _integer(row, "gbs") * _integer(row, "seq_len")
    if row["tok_s_gpu"]:
        return tokens / float(row["tok_s_gpu"]) / _integer(row, "n_gpus")
    if row.get("tflops_per_gpu") and SC21 in row.get("tflops_kind", ""):
        layers, width, vocabulary = (_integer(row, key) for key in ("n_layers", "d_model", "vocab"))
        rest = 1 + _integer(row, "seq_len") / (6 * width) + vocabulary / (16 * layers * width)
        return 96 * tokens * layers * width**2 * rest / float(row["tflops_per_gpu"]) / 1e12 / _integer(row, "n_gpus")
    raise Skipped("neither a step's time nor tokens a second are stated")


def _stack(row: Mapping[str, str]) -> Stack:
    name = row["framework"]
    for prefix, stack in sorted(_stacks().items(), key=lambda each: -len(each[0])):
        if name.startswith(prefix):
            compiled = {"yes": True, "no": False}.get(row.get("compile", ""), stack.fused)
            nbytes = 2 if "PURE" in row["precision"] else stack.reduce_bytes
            return replace(stack, fused=compiled, reduce_bytes=nbytes)
    raise Skipped(f"no file of {STACKS.name} describes {name or 'the software, which is not stated'}")


@cache
def _stacks() -> dict[str, Stack]:
    """By the beginning of a framework's name."""
    found = {}
    for path in sorted(STACKS.glob("*.toml")):
        text = tomllib.loads(path.read_text(encoding="utf-8"))
        prefixes = text.pop("frameworks")
        hides = frozenset(text.pop("hides"))
        stack = Stack(name=path.stem, hides=hides, **text)
        found.update(dict.fromkeys(prefixes, stack))
    return found


def _cluster(row: Mapping[str, str]) -> Cluster:
    gpus = min(_integer(row, "gpus_per_node", 8), _integer(row, "n_gpus"))
    name = row["gpu"].partition("(")[0]
    rate = float(row["internode_gbps_per_gpu"] or NETWORK_GB_S.get(row["gpu"][:4], 25.0))
    return Cluster(-(-_integer(row, "n_gpus") // gpus), gpus, name, rate * 1e9)


def _watts(gpu: str) -> float | None:
    """The limit that stands behind a GPU's name, such as (500W)."""
    found = re.search(r"\((\d+)W\)", gpu)
    return float(found[1]) if found else None


def _padded(extent: int, ranks: int) -> int:
    """A vocabulary that the ranks divide, as these programs pad it."""
    return -(-extent // (128 * ranks)) * 128 * ranks


def _integer(row: Mapping[str, str], key: str, default: int | None = None) -> int:
    if not row[key]:
        if default is None:
            raise Skipped(f"{key} is not stated")
        return default
    return int(float(row[key]))
