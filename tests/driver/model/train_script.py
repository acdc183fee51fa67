"""A training script that does not know how it is run: `python` makes its ranks threads, `torchrun` processes.

Its argument is the plan's mesh. Prints one JSON object: losses of the plain model, of a decorated class and of a
compiled model, and what the parameters are.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import stretto
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PLAN = f"""
mesh ({sys.argv[1]})
shard "up"    columns over tp
shard "down"  rows    over tp
shard "embed" vocab   over tp
"""
VOCAB = 51  # uneven over tp


class Plain(nn.Module):
    """An embedding, a feed-forward with running statistics, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(VOCAB, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mean", torch.zeros(8))
        self.mean: Tensor

    def forward(self, tokens: Tensor, targets: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        x = x + self.down(F.gelu(self.up(x)))
        self.mean.mul_(0.5).add_(x.detach().mean((0, 1)))
        logits = self.head(x - self.mean)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten()), "logits": logits}


@stretto.compile(plan=PLAN)
class Decorated(Plain):
    """Distributed when it is built."""


def train(model: nn.Module, steps: int = 3) -> list[float]:
    """Steps of two batches each, the second with frozen parameters, then an evaluation."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    losses = []
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        model.up.requires_grad_(step != 1)
        for half in range(2):
            tokens = torch.randint(VOCAB, (4, 7), generator=generator)
            with waiting(model) if half == 0 and step == 2 else nullcontext():
                loss = model(tokens[:, :-1], tokens[:, 1:])["loss"]
                loss.backward()
            losses.append(loss.item())
        losses.append(norm(model) if step else float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        losses.append(model.eval()(tokens[:, :-1], tokens[:, 1:])["loss"].item())
    return [*losses, model.mean.sum().item()]


def waiting(model: nn.Module) -> AbstractContextManager[None]:
    """Where a compiled model's gradients wait for their reduction."""
    result: AbstractContextManager[None] = getattr(model, "no_sync", nullcontext)()
    return result


def norm(model: nn.Module) -> float:
    """The norm of the gradients, clipped."""
    assert math.isclose(float(stretto.clip_grad_norm_(model, math.inf, math.inf)), largest(model), rel_tol=1e-9)
    return float(stretto.clip_grad_norm_(model, 0.5))


def largest(model: nn.Module) -> float:
    """The largest magnitude among all gradients, each gathered."""
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return max(float(getattr(grad, "full_tensor", lambda grad=grad: grad)().abs().max()) for grad in grads)


def refused(model: nn.Module) -> list[str]:
    """The codes of errors that only processes make; all of them stop alike."""
    codes = []
    rank = int(os.environ["RANK"])
    tokens = torch.full((8, 6), rank)
    for attempt in (
        lambda: stretto.compile(Plain(), plan="mesh (dp=3)"),
        lambda: model(tokens, tokens),
        lambda: known_inputs_that_differ(model),
        step_of_an_optimizer_made_before,
    ):
        try:
            attempt()
        except stretto.StrettoError as error:
            codes.append(error.code)
    return codes


def losses_under(make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], compiled: bool) -> list[float]:
    """Three steps of an optimizer, and the norm of a parameter after them."""
    torch.manual_seed(0)
    model: nn.Module = Plain()
    model = stretto.compile(model, plan=PLAN) if compiled else model
    optimizer = make(model.parameters())
    losses = []
    for step in range(3):
        tokens = torch.randint(VOCAB, (4, 7), generator=torch.Generator().manual_seed(step))
        loss = model(tokens[:, :-1], tokens[:, 1:])["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return [*losses, model.up.weight.norm().item()]


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
}


def known_inputs_that_differ(model: nn.Module) -> None:
    """At a shape that was compared before, they are compared again where anomalies are looked for."""
    tokens = torch.full((4, 6), int(os.environ["RANK"]))
    with torch.no_grad(), stretto.detect_anomaly():
        model(tokens, tokens)


def loss_of_parts(model: nn.Module) -> list[float]:
    """The loss of a batch, and of the same where each process passes its own rows."""
    tokens = torch.randint(VOCAB, (4, 7), generator=torch.Generator().manual_seed(7))
    parts = 2 if "dp" in sys.argv[1] else 1
    position = int(os.environ.get("RANK", "0")) // (int(os.environ.get("WORLD_SIZE", "1")) // parts or 1)
    rows = 4 // parts if "RANK" in os.environ else 4
    own = stretto.local(tokens[position * rows : (position + 1) * rows] if "RANK" in os.environ else tokens)
    losses = []
    for tensor in (tokens, own):
        model.mean.zero_()  # each forward moves it
        losses.append(model(tensor[:, :-1], tensor[:, 1:])["loss"].item())
    return losses


def step_of_an_optimizer_made_before() -> None:
    """It holds parameters that the model has given up."""
    torch.manual_seed(0)
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stretto.compile(model, plan=PLAN)
    optimizer.step()


def main() -> None:
    """Train both forms of one model."""
    torch.set_default_dtype(torch.float64)
    report: dict[str, object] = {}
    torch.manual_seed(0)
    model: nn.Module = Decorated()
    report["names"] = [name for name, _ in model.named_parameters()]
    report["type"] = type(next(model.parameters())).__name__
    report["shapes"] = [list(getattr(parameter, "_local_tensor", parameter).shape) for parameter in model.parameters()]
    report["class"] = train(model)
    torch.manual_seed(0)
    report["plain"] = train(Plain())
    torch.manual_seed(0)
    report["model"] = train(stretto.compile(Plain(), plan=PLAN), steps=1)[:3]
    report["refused"] = refused(model) if "RANK" in os.environ else []
    report["optimizers"] = {
        name: [losses_under(make, compiled) for compiled in (False, True)] for name, make in OPTIMIZERS.items()
    }
    report["parts"] = loss_of_parts(model)
    report["hash"] = stretto.program_of(model).hash
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(report))


if __name__ == "__main__":
    main()
