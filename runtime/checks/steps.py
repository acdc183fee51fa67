"""Training or inference steps of a program on random values: the loss and time of each step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..program.arguments import DTYPES, Json
from ..program.program import Program
from ..session import Session
from ..threads.session import RankThreads
from .model_and_program import AllRanks, Key, backward
from .program_check import initial_values, random_inputs
from .random_values import Unknown


@dataclass(frozen=True)
class StepsReport:
    """The result of `run_steps`."""

    mode: str
    losses: tuple[float, ...]
    """The first scalar output of each step; empty where the program has none."""
    seconds: tuple[float, ...]
    """The time of each step: forward, backward and optimizer."""
    tokens: int | None
    """The elements of the largest integer input of a step; None without integer inputs."""

    @property
    def median_s(self) -> float:
        """The median time of a step, in seconds. Leaves out the first, which warms up, unless it is the only one."""
        return statistics.median(self.seconds[1:] or self.seconds)

    @property
    def tokens_per_s(self) -> float | None:
        """None where a step has no tokens."""
        return None if self.tokens is None else self.tokens / self.median_s

    def to_json(self) -> dict[str, Json]:
        """One JSON object, with the derived figures."""
        return {
            "mode": self.mode, "losses": list(self.losses), "seconds": list(self.seconds), "tokens": self.tokens,
            "median_s": self.median_s, "tokens_per_s": self.tokens_per_s,
        }  # fmt: skip


def run_steps(
    program: Program,
    *,
    ranks: Callable[[Program], Session] = RankThreads,
    side: Callable[[Session, Mapping[Key, Tensor]], AllRanks] = AllRanks,
    steps: int = 10,
    seed: int = 0,
    after: Callable[[int, float | None], None] = lambda step, loss: None,
) -> StepsReport:
    """Run `steps` (at least 1) steps of AdamW on one seeded random batch; in infer mode `steps` forwards.

    Parameters start from the program's weights, else from seeded random values. `after(step, loss)` is called after
    every step.
    """
    random = torch.Generator().manual_seed(seed)
    reference = program.single_device
    values = initial_values(program, reference, random)
    values.update({key: program.weights[key[1]] for key in values if key[1] in program.weights})
    inputs = random_inputs(program, reference, random, Unknown.GUESS)
    session = ranks(program)
    losses: list[float] = []
    seconds: list[float] = []
    try:
        run = side(session, values)
        for step in range(steps):
            started = time.perf_counter()
            losses += _step(program, run, inputs)
            seconds.append(time.perf_counter() - started)
            after(step, losses[-1] if losses else None)
    finally:
        session.close()
    return StepsReport(program.manifest.mode, tuple(losses), tuple(seconds), _tokens(program))


def _step(program: Program, run: AllRanks, inputs: Mapping[int | None, Tensor]) -> list[float]:
    """The loss as a list of one; empty where no output is a scalar."""
    outputs = run.forward(inputs)
    if program.manifest.mode == "train":
        differentiable = {argument.index for argument in program.of_kind("tangent")}
        indexed_outputs = enumerate(program.results_of_kind("output"))
        backward(
            outputs,
            {
                index: torch.ones_like(outputs[index])
                for index, output in indexed_outputs
                if output.index in differentiable
            },
        )
        run.step()
    return [float(output.detach()) for output in outputs if output.dim() == 0 and output.is_floating_point()][:1]


def _tokens(program: Program) -> int | None:
    integers = [argument.shape for argument in program.of_kind("input") if _is_integer(DTYPES[argument.dtype])]
    return max((prod(shape) for shape in integers), default=None)


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)
