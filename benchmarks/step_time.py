"""How long a tensor-parallel training step takes: Stretto's against PyTorch's own, eager and under torch.compile.

    python benchmarks/step_time.py                     two gloo processes, one thread each
    python benchmarks/step_time.py --hidden 256 --repeats 31

PyTorch's own is `parallelize_module` with the same cuts: q, k, v and up by columns, o and down by rows. The three take
turns in one process group, so that whatever else the machine does hits all of them; medians, and the median of the
ratios of neighbouring steps. All three must first agree on the loss and on a gradient.
"""

import argparse
import os
import random
import socket
import statistics
import time
from collections.abc import Callable

import stretto
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

PLAN = """
mesh (tp={ranks})
shard "*.{{q,k,v}}_proj", "*.up_proj" columns over tp
shard "*.o_proj", "*.down_proj" rows over tp
"""
HEAD = 64
"""Features of an attention head."""


class Block(nn.Module):
    """A transformer block, (batch, tokens, hidden) to the same; the number of heads follows from what it is given."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(hidden, hidden) for _ in range(3))
        self.o_proj = nn.Linear(hidden, hidden)
        self.up_proj, self.down_proj = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Attention and MLP, each around a residual."""
        y = self.attention_norm(x)
        q, k, v = (p(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x))))


class Stack(nn.Module):
    """Blocks and a loss."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(hidden) for _ in range(layers))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The mean squared error."""
        for layer in self.layers:
            x = layer(x)
        return F.mse_loss(x, target)


class Trained:
    """A model with its optimizer, and the seconds of its steps: of forward and backward, and with the optimizer."""

    def __init__(self, model: nn.Module, call: Callable[..., Tensor]) -> None:
        self.model, self.call = model, call
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.times: dict[str, list[float]] = {"forward and backward": [], "with AdamW": []}

    def gradients(self, x: Tensor, target: Tensor) -> tuple[float, Tensor]:
        """The loss and one full gradient, without a step."""
        loss = self.call(x, target)
        loss.backward()
        gradient = next(p.grad for name, p in self.model.named_parameters() if name.endswith("0.q_proj.weight"))
        full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        self.optimizer.zero_grad()
        return loss.item(), full

    def step(self, x: Tensor, target: Tensor) -> None:
        """One timed step, begun together by all processes."""
        dist.barrier()
        began = time.perf_counter()
        self.call(x, target).backward()
        middle = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times["forward and backward"].append(middle - began)
        self.times["with AdamW"].append(time.perf_counter() - began)


def contestants(hidden: int, layers: int, ranks: int, *, compiled: bool, regions: bool) -> dict[str, Trained]:
    """The same model three times; torch.compile needs a C++ compiler."""
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    cuts = {name: ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj", "up_proj")}
    cuts |= {name: RowwiseParallel() for name in ("o_proj", "down_proj")}

    def build() -> Stack:
        torch.manual_seed(0)
        return Stack(hidden, layers)

    def parallelized() -> Stack:
        stack = build()
        for layer in stack.layers:
            parallelize_module(layer, mesh, cuts)
        return stack

    ours = stretto.compile(build(), plan=PLAN.format(ranks=ranks))
    contenders = {"Stretto": Trained(ours, ours), "DTensor eager": Trained(eager := parallelized(), eager)}
    if regions:
        fused = stretto.compile(build(), plan=PLAN.format(ranks=ranks))

        def call(*inputs: Tensor) -> Tensor:
            stretto.use_implementations("inductor")  # at the first call, behind that of `ours`
            return fused(*inputs)

        contenders["Stretto, compiled regions"] = Trained(fused, call)
    if compiled:
        other = parallelized()
        contenders["DTensor torch.compile"] = Trained(other, torch.compile(other, dynamic=False))
    return contenders


def compare(options: argparse.Namespace, hidden: int) -> None:
    """Measure one hidden size and print it from rank 0."""
    ranks = dist.get_world_size()
    sides = contestants(hidden, options.layers, ranks, compiled=not options.no_compile, regions=options.regions)
    torch.manual_seed(1)
    x, target = torch.randn(2, options.batch, options.seq, hidden)
    checked = {name: side.gradients(x, target) for name, side in sides.items()}
    loss, gradient = checked["DTensor eager"]
    for name, (other, other_gradient) in checked.items():
        assert abs(other - loss) < 1e-5 * abs(loss), (name, other, loss)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-6)
    for side in sides.values():
        for _ in range(3):
            side.step(x, target)
        for times in side.times.values():
            times.clear()
    for repeat in range(options.repeats):
        order = list(sides.values())
        random.Random(repeat).shuffle(order)  # equally in all processes: memory is as the side before left it
        for side in order:
            side.step(x, target)
    if dist.get_rank() == 0:
        shape = f"hidden {hidden}, {options.layers} layers, batch {options.batch} x {options.seq}"
        show(f"{shape}, {ranks} processes, median of {options.repeats}", sides)


def show(title: str, sides: dict[str, Trained]) -> None:
    """A Markdown table: milliseconds, and Stretto's time over the other's (median of the pairs)."""
    print(f"\n{title}\n\n| | " + " | ".join(sides) + " | " + " | ".join(f"against {n}" for n in list(sides)[1:]) + " |")
    print("|---" * (2 * len(sides)) + "|")
    for part in ("forward and backward", "with AdamW"):
        cells = [f"{1e3 * statistics.median(side.times[part]):.1f} ms" for side in sides.values()]
        own = sides["Stretto"].times[part]
        for name, side in sides.items():
            if name != "Stretto":
                ratios = [a / b for a, b in zip(own, side.times[part], strict=True)]
                cells.append(f"{statistics.median(ratios):.2f}")
        print(f"| {part} | {' | '.join(cells)} |", flush=True)


Compare = Callable[[argparse.Namespace, int], None]
"""Measures one hidden size, in each process."""


def run(rank: int, port: int, compare: Compare, options: argparse.Namespace) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(options.ranks), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo")
    for hidden in options.hidden:
        compare(options, hidden)
    dist.barrier()
    dist.destroy_process_group()


def run_processes(compare: Compare, options: argparse.Namespace) -> None:
    """Start the processes and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run, (port, compare, options), nprocs=options.ranks)


def options_of_processes(doc: str) -> argparse.ArgumentParser:
    """What benchmarks by processes have in common."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    return parser


def main() -> None:
    """Start the processes."""
    parser = options_of_processes(__doc__)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--regions", action="store_true", help="also with regions that Inductor compiles")
    run_processes(compare, parser.parse_args())


if __name__ == "__main__":
    main()
