"""What the training examples have in common beside the training: options, the comparison with one device, the table."""

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[..., Tensor]
"""The loss of a model on a batch: (model, *batch) to a scalar."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
TOLERANCES = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 3e-2}
"""How far a loss may be from the single-device one, relative to it: sums are taken in another order."""


def parser(description: str) -> argparse.ArgumentParser:
    """The options that both examples have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--plan", required=True, help="plan file, such as examples/plans/dp_tp.plan")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--batch", type=int, default=8, help="sequences per step, over all ranks")
    options.add_argument("--seq", type=int, default=128, help="bytes per sequence")
    options.add_argument("--dtype", choices=DTYPES, default="float32")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--compare", type=int, default=5, help="steps to repeat on a single device")
    options.add_argument("--hidden", type=int, default=128)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--heads", type=int, default=4)
    return options


class Report:
    """Prints a line a step, in one process of the run, and trains a copy of the model on one device beside it.

    `floor`: the relative error that the model itself rounds to, whatever its dtype.
    """

    def __init__(self, options: argparse.Namespace, model: nn.Module, loss: Loss, floor: float = 0.0) -> None:
        self.options = options
        self.tolerance = max(TOLERANCES[options.dtype], floor)
        self.loss = loss
        self.prints = os.environ.get("RANK", "0") == "0"
        self.single = copy.deepcopy(model) if self.prints else None
        self.optimizer = torch.optim.AdamW(self.single.parameters(), lr=options.lr) if self.single else None
        self.steps = 0
        self.compared = 0
        self.worst = 0.0
        count = sum(parameter.numel() for parameter in model.parameters())
        ranks = f"one of {os.environ['WORLD_SIZE']} processes" if "RANK" in os.environ else "ranks as threads"
        self._say(f"{type(model).__name__} of {count:,} parameters in {options.dtype}, {options.plan}, {ranks}")
        self._say("  step       loss   tokens/s   from one device")
        self.since = time.perf_counter()

    def step(self, loss: Tensor, *batch: Tensor) -> None:
        """Take down the loss of a step that the caller has made on this batch."""
        seconds = time.perf_counter() - self.since
        self.steps += 1
        compared = ""
        if self.single and self.steps <= self.options.compare:
            difference = abs(loss.item() - self._single_device(*batch)) / abs(loss.item())
            self.worst = max(self.worst, difference) if difference == difference else float("nan")
            self.compared += 1
            compared = f"{difference:.1e}"
        speed = f"{batch[0].numel() / seconds:.0f}" if self.steps > 1 else "compiling"
        self._say(f"{self.steps:>6} {loss.item():>10.6f} {speed:>10} {compared:>17}".rstrip())
        self.since = time.perf_counter()

    def end(self) -> None:
        """The verdict; ends the script with 1 where a loss was not the single device's."""
        if not self.compared:
            return
        if not self.worst <= self.tolerance:
            sys.exit(
                f"losses differ from the single-device run's by up to {self.worst:.1e} (tolerance {self.tolerance:g})"
            )
        self._say(f"the first {self.compared} losses are the single-device run's to {self.tolerance:g}")

    def _single_device(self, *batch: Tensor) -> float:
        assert self.single is not None and self.optimizer is not None
        loss = self.loss(self.single, *batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def _say(self, line: str) -> None:
        if self.prints:
            print(line, flush=True)
