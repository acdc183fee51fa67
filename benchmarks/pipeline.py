"""How long a pipelined training step takes: Stretto's against torch.distributed.pipelining's, schedule by schedule.

    python benchmarks/pipeline.py                       two gloo processes, one thread each
    python benchmarks/pipeline.py --hidden 256 --microbatches 8 --repeats 31

The same stack of transformer blocks, cut into the same stages by hand for PyTorch. Both take turns in one process
group, so that whatever else the machine does hits both; medians, and the median of the ratios of neighbouring steps.
Both must first agree on the loss and on a gradient. A step is forward and backward of all microbatches.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import stretto
import torch
import torch.distributed as dist
from step_time import Stack, options_of_processes, run_processes
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import Schedule1F1B, ScheduleGPipe, ScheduleZBVZeroBubble
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

PLAN = """
mesh (pp={ranks})
pipeline over pp {{ schedule {schedule}  microbatches {microbatches}  balance layers }}
"""
SCHEDULES: dict[str, tuple[Callable[..., object], int]] = {
    "gpipe": (ScheduleGPipe, 1),
    "1f1b": (Schedule1F1B, 1),
    "zb-v": (ScheduleZBVZeroBubble, 2),
}
"""By Stretto's name: PyTorch's class, and the stages of a rank."""

Step = Callable[[], float | None]
"""Forward and backward of a batch; the loss, where this process knows it."""


class Part(nn.Module):
    """Some blocks of a stack."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, tokens, hidden) to the same."""
        for layer in self.layers:
            x = layer(x)
        return x


def torch_step(name: str, stack: Stack, microbatches: int, x: Tensor, target: Tensor) -> Step:
    """A step of `torch.distributed.pipelining`."""
    schedule_class, chunks = SCHEDULES[name]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    count = ranks * chunks
    mine = [rank] if chunks == 1 else [rank, count - 1 - rank]
    layers = list(stack.layers)
    size = len(layers) // count
    parts = [Part(layers[index * size : (index + 1) * size]) for index in mine]
    stages = [PipelineStage(part, index, count, torch.device("cpu")) for part, index in zip(parts, mine, strict=True)]
    inputs = stages[0] if chunks == 1 else stages
    schedule = schedule_class(inputs, microbatches, loss_fn=F.mse_loss)

    def step() -> float | None:
        losses: list[Tensor] = []
        takes = (x,) if 0 in mine else ()
        gives = {"target": target, "losses": losses} if count - 1 in mine else {}
        schedule.step(*takes, **gives)
        return float(torch.stack(losses).mean().detach()) if losses else None

    return step


def stretto_step(name: str, stack: Stack, microbatches: int, x: Tensor, target: Tensor) -> Step:
    """A step of ours."""
    plan = PLAN.format(ranks=dist.get_world_size(), schedule=name, microbatches=microbatches)
    model = stretto.compile(stack, plan=plan)

    def step() -> float | None:
        loss = model(x, target)
        loss.backward()
        return float(loss.detach())

    return step


def gradient_of(stack: nn.Module) -> Tensor | None:
    """The gradient of the first layer's q_proj, where this process has it."""
    weight = next(p for name, p in stack.named_parameters() if name.endswith("layers.0.q_proj.weight"))
    grad = weight.grad
    return grad.to_local() if isinstance(grad, DTensor) else grad


def compare(options: argparse.Namespace, hidden: int) -> None:
    """Measure one hidden size, every schedule."""
    torch.manual_seed(1)
    x, target = torch.randn(2, options.batch, options.seq, hidden)
    for name in options.schedules:
        stacks: list[Stack] = []
        for _ in range(2):
            torch.manual_seed(0)
            stacks.append(Stack(hidden, options.layers))
        sides = {
            "Stretto": stretto_step(name, stacks[0], options.microbatches, x, target),
            "PyTorch": torch_step(name, stacks[1], options.microbatches, x, target),
        }
        agree(sides, stacks)
        times = measure(sides, stacks, options.repeats)
        if dist.get_rank() == 0:
            ratio = statistics.median(a / b for a, b in zip(times["Stretto"], times["PyTorch"], strict=True))
            ours, theirs = (1e3 * statistics.median(times[side]) for side in sides)
            print(f"| {hidden} | {name} | {ours:.1f} ms | {theirs:.1f} ms | {ratio:.2f} |", flush=True)


def agree(sides: dict[str, Step], stacks: list[Stack]) -> None:
    """Both give the same loss and gradient."""
    losses = [step() for step in sides.values()]
    gradients = [gradient_of(stack) for stack in stacks]
    if losses[0] is not None and losses[1] is not None:
        assert abs(losses[0] - losses[1]) < 1e-5 * abs(losses[1]), losses
    if dist.get_rank() == 0:
        assert gradients[0] is not None and gradients[1] is not None
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def measure(sides: dict[str, Step], stacks: list[Stack], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side's steps, in turns; gradients are dropped before each."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(repeats + 2):
        for (name, step), stack in zip(sides.items(), stacks, strict=True):
            for parameter in stack.parameters():
                parameter.grad = None
            dist.barrier()
            began = time.perf_counter()
            step()
            dist.barrier()
            if index >= 2:
                times[name].append(time.perf_counter() - began)
    return times


def main() -> None:
    """Start the processes."""
    parser = options_of_processes(__doc__)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=list(SCHEDULES))
    parser.set_defaults(layers=8, batch=16, repeats=15)
    options = parser.parse_args()
    print("\n| hidden | schedule | Stretto | PyTorch | ratio |\n|---|---|---|---|---|", flush=True)
    run_processes(compare, options)


if __name__ == "__main__":
    main()
