"""How long a sharded training step takes: ZeRO-3 against `fully_shard`, cut tokens against gathered keys and values.

    python benchmarks/sharded.py                       two gloo processes, one thread each
    python benchmarks/sharded.py --hidden 256 --repeats 31 --json

The model has the proportions of a Llama (benchmarks/configs). PyTorch's sides are written with its public API:
`fully_shard` on every layer and the model, by default and with an asynchronous unshard and explicit prefetch, and under
`torch.compile`; for cut tokens DTensors that gather the keys and values of each attention, and DistributedDataParallel
for the gradients. All sides of a comparison take turns in one process group, so that whatever else the machine does
hits all of them; medians, and the median of the ratios of neighbouring steps. All must first agree on the loss and on a
gradient. A step is forward and backward, and the same with AdamW.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import stretto
import torch
import torch.distributed as dist
from step_time import options_of_processes, run_processes
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

CONFIG = json.loads((Path(__file__).parent / "configs" / "llama_8b.json").read_text())
HEAD = 32
"""Features of an attention head."""
VOCABULARY = 2048
ZERO = "mesh (dp={ranks})\nzero 3 over dp {{ {items} }}"
TOKENS = "mesh (cp={ranks})\nshard inputs dim 1 over cp\nattention over cp {{ method {method} }}"

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention of (batch, heads, tokens, HEAD)."""


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over all tokens."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Layer(nn.Module):
    """A Llama layer: grouped-query attention with rotary positions and a gated MLP, each behind an RMS norm."""

    def __init__(self, hidden: int, attend: Attend) -> None:
        super().__init__()
        heads = hidden // HEAD
        groups = heads * CONFIG["num_key_value_heads"] // CONFIG["num_attention_heads"] or 1
        inner = hidden * CONFIG["intermediate_size"] // CONFIG["hidden_size"]
        self.attend = attend
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(hidden, CONFIG["rms_norm_eps"]) for _ in range(2))
        self.q_proj, self.o_proj = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(hidden, groups * HEAD, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, tokens, hidden) to the same."""
        y = self.attention_norm(x)
        q, k, v = (p(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (t * cos + torch.cat((-t[..., HEAD // 2 :], t[..., : HEAD // 2]), -1) * sin for t in (q, k))
        x = x + self.o_proj(self.attend(q, k, v).transpose(1, 2).flatten(2))
        y = self.mlp_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    """An embedding, layers, a norm and a head."""

    def __init__(self, hidden: int, layers: int, attend: Attend = causal) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, hidden)
        self.layers = nn.ModuleList(Layer(hidden, attend) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, CONFIG["rms_norm_eps"])
        self.head = nn.Linear(hidden, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy; all of (batch, tokens)."""
        frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, HEAD, 2) / HEAD)
        angles = (positions[..., None] * torch.cat((frequencies, frequencies))).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


class Side:
    """A model in training on its part of the batch, and the seconds of its steps."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, ...], call: Callable[..., Tensor] | None = None) -> None:
        self.model, self.batch, self.call = model, batch, model if call is None else call
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.times: dict[str, list[float]] = {"forward and backward": [], "with AdamW": []}

    def gradients(self) -> tuple[float, Tensor]:
        """The mean of the loss over ranks and one full gradient, without a step."""
        loss = self.call(*self.batch)
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        gradient = next(p.grad for name, p in self.model.named_parameters() if name.endswith("0.q_proj.weight"))
        full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()
        self.optimizer.zero_grad()
        return mean.item() / dist.get_world_size(), full

    def step(self) -> None:
        """One timed step, begun together by all processes."""
        dist.barrier()
        began = time.perf_counter()
        self.call(*self.batch).backward()
        middle = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times["forward and backward"].append(middle - began)
        self.times["with AdamW"].append(time.perf_counter() - began)


def built(hidden: int, layers: int, attend: Attend = causal) -> Llama:
    """The same weights on every rank and side."""
    torch.manual_seed(0)
    return Llama(hidden, layers, attend)


def fully_sharded(model: Llama, mesh: DeviceMesh, *, prefetch: bool) -> Llama:
    """FSDP2, a unit for each layer; `prefetch` says explicitly which layer is gathered behind which."""
    layers = list(model.layers)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if prefetch:
        for layer, following in pairwise(layers):
            layer.set_modules_to_forward_prefetch([following])
            following.set_modules_to_backward_prefetch([layer])
    return model


def unshard_first(model: Llama) -> Callable[..., Tensor]:
    """The call of a model that begins to gather its first parameters before it."""

    def call(*batch: Tensor) -> Tensor:
        assert isinstance(model, FSDPModule)
        model.unshard(async_op=True)
        return model(*batch)

    return call


def zero_sides(options: argparse.Namespace, hidden: int, batch: tuple[Tensor, ...]) -> dict[str, Side]:
    """ZeRO-3: each rank has some of the rows."""
    ranks, mesh = dist.get_world_size(), init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
    own = tuple(t.chunk(ranks)[dist.get_rank()] for t in batch)
    ours = stretto.compile(built(hidden, options.layers), plan=ZERO.format(ranks=ranks, items=options.items))
    plain, ahead = (fully_sharded(built(hidden, options.layers), mesh, prefetch=prefetch) for prefetch in (False, True))
    sides = {
        "Stretto": Side(ours, batch),
        "fully_shard": Side(plain, own),
        "fully_shard, prefetch": Side(ahead, own, unshard_first(ahead)),
    }
    if not options.no_compile:
        other = fully_sharded(built(hidden, options.layers), mesh, prefetch=False)
        sides["fully_shard, torch.compile"] = Side(other, own, torch.compile(other, dynamic=False))
    return sides


class GatheredAttention:
    """Causal attention of a rank's tokens, with the keys and values of all ranks as DTensors gather them."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(batch, heads, own tokens, HEAD)."""
        k, v = (self._gathered(t) for t in (k, v))
        first = self.mesh.get_local_rank() * q.shape[2]
        rows = torch.arange(first, first + q.shape[2]).unsqueeze(1)
        return F.scaled_dot_product_attention(q, k, v, rows >= torch.arange(k.shape[2]), enable_gqa=True)

    def _gathered(self, part: Tensor) -> Tensor:
        whole = DTensor.from_local(part, self.mesh, [Shard(2)]).redistribute(placements=[Replicate()])
        return whole.to_local(grad_placements=[Partial()])


def token_sides(options: argparse.Namespace, hidden: int, batch: tuple[Tensor, ...]) -> dict[str, Side]:
    """Cut tokens: each rank has some of the tokens of all rows."""
    ranks, mesh = dist.get_world_size(), init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("cp",))
    own = tuple(t.chunk(ranks, 1)[dist.get_rank()] for t in batch)
    gathered = DistributedDataParallel(built(hidden, options.layers, GatheredAttention(mesh)))
    sides = {}
    for method in options.methods:
        plan = TOKENS.format(ranks=ranks, method=method)
        sides[f"Stretto, {method}"] = Side(stretto.compile(built(hidden, options.layers), plan=plan), batch)
    return {**sides, "K/V gathered": Side(gathered, own)}


def compare(options: argparse.Namespace, hidden: int) -> None:
    """Measure one hidden size, both comparisons, and print them from rank 0."""
    torch.manual_seed(1)
    tokens, targets = torch.randint(VOCABULARY, (2, options.batch, options.seq))
    batch = (tokens, torch.arange(options.seq).expand(options.batch, -1).contiguous(), targets)
    for name, make in (("zero 3", zero_sides), ("cut tokens", token_sides)):
        if name in options.only:
            sides = make(options, hidden, batch)
            measure(sides, options.repeats)
            if dist.get_rank() == 0:
                show(name, hidden, options, sides)


def measure(sides: dict[str, Side], repeats: int) -> None:
    """All sides agree; then they take turns."""
    checked = {name: side.gradients() for name, side in sides.items()}
    loss, gradient = next(reversed(checked.values()))
    for name, (other, other_gradient) in checked.items():
        assert abs(other - loss) < 1e-5 * abs(loss), (name, other, loss)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-6)
    for index in range(repeats + 3):
        for side in sides.values():
            side.step()
            if index < 3:
                for times in side.times.values():
                    times.clear()


def show(name: str, hidden: int, options: argparse.Namespace, sides: dict[str, Side]) -> None:
    """A line of JSON, or rows of Markdown: milliseconds, and each of Stretto's times over each of PyTorch's."""
    ours = [side for side in sides if side.startswith("Stretto")]
    others = [side for side in sides if side not in ours]
    for part in ("forward and backward", "with AdamW"):
        median = {side: round(1e3 * statistics.median(sides[side].times[part]), 2) for side in sides}
        ratios = {
            f"{own} to {other}": round(
                statistics.median(a / b for a, b in zip(sides[own].times[part], sides[other].times[part], strict=True)),
                3,
            )
            for own in ours
            for other in others
        }
        if options.json:
            facts = {"hidden": hidden, "layers": options.layers, "batch": options.batch, "seq": options.seq}
            facts |= {"pairs": options.repeats, "load": round(os.getloadavg()[0], 1)}
            print(json.dumps({"comparison": name, **facts, "part": part, "ms": median, "ratio": ratios}), flush=True)
            continue
        print(f"\n{name}, {part}, hidden {hidden}, load {os.getloadavg()[0]:.1f}\n")
        for side, milliseconds in median.items():
            print(f"| {side} | {milliseconds:.1f} ms |")
        for pair, ratio in ratios.items():
            print(f"| {pair} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Start the processes."""
    parser = options_of_processes(__doc__)
    parser.set_defaults(hidden=[256], seq=256)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it needs a C++ compiler")
    parser.add_argument("--items", default="bucket 25MB", help="items of Stretto's zero statement")
    parser.add_argument("--methods", nargs="+", default=["all_to_all", "ring layout zigzag", "gather"])
    parser.add_argument("--only", nargs="+", default=["zero 3", "cut tokens"], choices=["zero 3", "cut tokens"])
    parser.add_argument("--json", action="store_true", help="a line of JSON for each part")
    run_processes(compare, parser.parse_args())


if __name__ == "__main__":
    main()
