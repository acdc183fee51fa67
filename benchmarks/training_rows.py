"""Published training runs as models, plans and clusters, and the step time that the simulator predicts for them.

A row becomes a decoder of its sizes, whose weights are never allocated, the plan of its parallel degrees, and a
cluster of its GPUs. Equal layers take equal time, so a model without a pipeline is compiled with 3 and with 5
layers, and the rest is their difference. Accumulated microbatches are the same step again, without the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from stretto import Plan
from stretto.backends.simulator.simulation import Simulation, simulate
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.dsl.clusters.cluster import Cluster
from stretto.frontend.targets.fake_parameters import fake_parameters
from torch import Tensor, nn

NETWORK_GB_S = {"V100": 12.5, "A100": 25.0, "H100": 50.0, "H200": 50.0}
"""GB/s of a GPU's network link where a row does not say: its usual nodes have 8 links of 100, 200 or 400 Gb/s."""
FEW, MORE = 3, 5


class Skipped(Exception):
    """Why a row cannot be expressed yet."""


@dataclass(frozen=True)
class Sizes:
    """A decoder's sizes, and how it is trained."""

    layers: int
    width: int
    heads: int
    key_heads: int
    ffn: int
    activation: str
    vocabulary: int
    tokens: int


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a norm."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads, self.key_heads, self.activation = s.heads, s.key_heads, s.activation
        size, gated = s.width // s.heads, s.activation in ("swiglu", "geglu")
        norm = nn.RMSNorm if gated else nn.LayerNorm
        self.before_attention, self.before_ffn = norm(s.width), norm(s.width)
        self.q_proj = nn.Linear(s.width, s.heads * size, bias=not gated)
        self.k_proj, self.v_proj = (nn.Linear(s.width, s.key_heads * size, bias=not gated) for _ in range(2))
        self.o_proj = nn.Linear(s.heads * size, s.width, bias=not gated)
        self.up_proj, self.down_proj = (
            nn.Linear(s.width, s.ffn, bias=not gated),
            nn.Linear(s.ffn, s.width, bias=not gated),
        )
        self.gate_proj = nn.Linear(s.width, s.ffn, bias=False) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.before_attention(x)
        q, k, v = (
            projection(y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection, heads in (
                (self.q_proj, self.heads), (self.k_proj, self.key_heads), (self.v_proj, self.key_heads)
            )
        )  # fmt: skip
        grouped = self.heads != self.key_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.o_proj(y.transpose(1, 2).flatten(2))
        y = self.before_ffn(x)
        if self.gate_proj is not None:
            gate = F.silu if self.activation == "swiglu" else F.gelu
            return x + self.down_proj(gate(self.gate_proj(y)) * self.up_proj(y))
        up = self.up_proj(y)
        return x + self.down_proj(F.relu(up).square() if self.activation == "sqrelu" else F.gelu(up))


class Decoder(nn.Module):
    """A language model with its loss."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.LayerNorm(s.width)
        self.lm_head = nn.Linear(s.width, s.vocabulary, bias=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.lm_head(self.norm(x)).float().flatten(0, 1), labels.flatten())


def step_seconds(row: Mapping[str, str]) -> float:
    """The predicted time of an optimizer step. Raises Skipped where the row cannot be expressed yet."""
    _check(row)
    sizes = Sizes(
        _integer(row, "n_layers"), _integer(row, "d_model"), _integer(row, "n_heads"),
        _integer(row, "n_kv_heads", _integer(row, "n_heads")), _integer(row, "d_ffn"), row["ffn_act"],
        _padded(_integer(row, "vocab"), _integer(row, "tp", 1)), _integer(row, "seq_len"),
    )  # fmt: skip
    dp, microbatch = _integer(row, "dp", 1), _integer(row, "mbs")
    steps = max(_integer(row, "gbs") // (microbatch * dp), 1)
    cluster = _cluster(row)
    few, more = (_simulated(_layers(sizes, n), plan_of(row), microbatch * dp, cluster, fuses(row)) for n in (FEW, MORE))

    def extrapolated(one: float, other: float) -> float:
        return one + (other - one) / (MORE - FEW) * (sizes.layers - FEW)

    work = extrapolated(few.slowest.spent.end, more.slowest.spent.end)
    last = 0.0  # what only the last microbatch's reduction of gradients takes
    if row["zero_stage"][:1] != "3":
        last = extrapolated(*(each.slowest.spent.waited.get("dp", 0.0) for each in (few, more)))
    return steps * (work - last) + last + extrapolated(few.slowest.optimizer, more.slowest.optimizer)


def measured_seconds(row: Mapping[str, str]) -> float:
    """The published time of a step, or what follows from tokens a second and GPU, or from model FLOP/s."""
    if row["step_time_s"]:
        return float(row["step_time_s"])
    tokens = _integer(row, "gbs") * _integer(row, "seq_len")
    if row["tok_s_gpu"]:
        return tokens / float(row["tok_s_gpu"]) / _integer(row, "n_gpus")
    raise Skipped("neither a step's time nor tokens a second are stated")


def fuses(row: Mapping[str, str]) -> bool:
    """Whether the software fuses pointwise work: Megatron and torchtitan do, FSDP in eager mode does not."""
    return "foundry" not in row["framework"]


def plan_of(row: Mapping[str, str]) -> str:
    """The plan of a row's parallel degrees."""
    dp, tp = _integer(row, "dp", 1), _integer(row, "tp", 1)
    lines = [f"mesh (dp={dp}, tp={tp})"]
    if tp > 1:
        lines += [
            'shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp',
            'shard "*.o_proj", "*.down_proj" rows over tp',
            'shard "embed_tokens", "lm_head" vocab over tp',
        ]
        lines += ["shard activations tokens over tp"] if row["seq_parallel"] == "yes" else []
    if dp > 1 and row["zero_stage"][:1] in "13":
        lines.append(f"zero {row['zero_stage'][0]} over dp")
    if row["recompute"] == "full":
        lines.append('recompute "layers.*"')
    reduce = "bf16" if row["precision"] in ("bf16", "fp16", "bf16/MixedPrecision=PURE") else "fp32"
    lines.append(f"precision {{ compute bf16  reduce {reduce} }}")
    return "\n".join(lines)


@cache
def _simulated(sizes: Sizes, plan: str, batch: int, cluster: Cluster, fuses: bool) -> Simulation:
    with fake_parameters():
        model = Decoder(sizes)
    tokens = torch.zeros(1, 1, dtype=torch.int64).expand(batch, sizes.tokens)
    options = Options(loss_only=True, keep_weights=False)
    request = CompileRequest.of(model, (tokens, tokens), {}, Plan.parse(plan), options)
    return simulate(compile_program(request).program, cluster, fuses=fuses)


def _check(row: Mapping[str, str]) -> None:
    if row["precision"] in ("fp8", "float8"):
        raise Skipped("precision has no fp8 yet")
    if row["n_experts"]:
        raise Skipped("experts are not built by this script yet")
    if _integer(row, "pp", 1) > 1:
        raise Skipped("pipelines are not built by this script yet")
    if _integer(row, "cp", 1) > 1:
        raise Skipped("context parallelism is not built by this script yet")
    if row["recompute"] not in ("none", "full"):
        raise Skipped(f"recompute {row['recompute']} is not built by this script yet")
    if row["outcome"] != "ok":
        raise Skipped("it ran out of memory")


def _cluster(row: Mapping[str, str]) -> Cluster:
    gpus = min(_integer(row, "gpus_per_node", 8), _integer(row, "n_gpus"))
    name = {"H100-SXM-96GB-HBM2e(500W)": "H100-SXM-96GB-HBM2e"}.get(row["gpu"], row["gpu"])
    rate = float(row["internode_gbps_per_gpu"] or NETWORK_GB_S.get(row["gpu"][:4], 25.0))
    return Cluster(-(-_integer(row, "n_gpus") // gpus), gpus, name, rate * 1e9)


def _layers(sizes: Sizes, layers: int) -> Sizes:
    return Sizes(**{**vars(sizes), "layers": layers})


def _padded(extent: int, ranks: int) -> int:
    """A vocabulary that the ranks divide, as these programs pad it."""
    return -(-extent // (128 * ranks)) * 128 * ranks


def _integer(row: Mapping[str, str], key: str, default: int | None = None) -> int:
    if not row[key]:
        if default is None:
            raise Skipped(f"{key} is not stated")
        return default
    return int(float(row[key]))
