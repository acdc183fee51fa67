"""What the processes of `test_stages.py` run: one process is one rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import stretto
import torch
from stretto.driver.model.distribution import move_to_stages
from stretto.runtime import Program
from stretto.runtime.processes.parameters import has_local_part
from stretto.runtime.processes.session import ProcessRank
from stretto.runtime.rank.autograd import run
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

PLAN = "mesh (pp=2, dp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }"


class Two(nn.Module):
    """The model of `pipe_program.py`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(4, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.a @ self.b) ** 2).sum()


def batch() -> Tensor:
    return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trained(steps: int) -> tuple[Two, torch.optim.Optimizer]:
    """A plain model after some steps."""
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    for _ in range(steps):
        model(batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


class Staged:
    """The model on processes, its parameters moved to their stages once the program is there."""

    def __init__(self, folder: Path) -> None:
        self.session = ProcessRank(Program.load(folder / "train"))
        self.model = stretto.compile(Two(), plan=PLAN)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.1)

    def move(self) -> None:
        """As the first call does."""
        move_to_stages(self.session.program, dict(self.model.named_parameters()))

    def loss(self) -> Tensor:
        ones = torch.ones(1, dtype=torch.float64)
        return run(self.session, [self.model.b, self.model.a], [ones], [batch()])[0][0]

    def step(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def far(self, plain: nn.Module) -> float:
        """How far the parameters are from those of a plain model."""
        pairs = zip(self.model.parameters(), plain.parameters(), strict=True)
        return max(float((whole(tensor) - other).detach().abs().max()) for tensor, other in pairs)


def whole(tensor: Any) -> Tensor:
    full: Tensor = tensor.detach().full_tensor()
    return full


def everything(_rank: int, folder: Path) -> Any:
    """All that four processes can show in one launch; they write what the test reads."""
    staged = Staged(folder)
    extra = stretto.load_checkpoint(folder / "plain", staged.model, staged.optimizer)
    staged.move()
    facts: dict[str, Any] = {"extra": extra, "loaded": staged.far(trained(2)[0])}
    facts["norms"] = [norm(staged, p) for p in (2.0, 1.0, math.inf)]
    facts["torch's clipping"] = clipped_by_torch(staged)
    staged.step()
    facts["went on"] = staged.far(trained(3)[0])
    facts["here"] = [has_local_part(parameter) for parameter in staged.model.parameters()]
    states = [tensor for state in staged.optimizer.state.values() for tensor in state.values()]
    facts["held"] = sum(tensor.to_local().numel() for tensor in states if isinstance(tensor, DTensor))
    stretto.save_checkpoint(folder / "staged", staged.model, staged.optimizer, step=3)
    stretto.save_weights(staged.model, folder / "weights.safetensors")
    again = Staged(folder)
    again.move()
    stretto.load_checkpoint(folder / "staged", again.model, again.optimizer)
    again.step()
    facts["again"] = again.far(trained(4)[0])
    stretto.load_weights(again.model, folder / "weights.safetensors")
    facts["weights"] = again.far(trained(3)[0])
    again.model.load_state_dict(Two().state_dict())
    facts["state dict"] = again.far(Two())
    return facts


def clipped_by_torch(staged: Staged) -> str:
    """What torch's own clipping says of gradients in stages."""
    staged.loss().backward()
    try:
        nn.utils.clip_grad_norm_(staged.model.parameters(), 0.1)
    except stretto.StrettoError as error:
        return str(error)
    finally:
        staged.optimizer.zero_grad()
    return ""


def norm(staged: Staged, p: float) -> float:
    """How far the norm, and the clipped gradients, are from those of a plain model."""
    staged.loss().backward()
    plain = trained(2)[0]
    plain(batch()).backward()
    norm = stretto.clip_grad_norm_(staged.model, 0.1, p)
    expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.1, p)
    far = abs(float(norm) - float(expected)) / float(expected)
    for parameter, other in zip(staged.model.parameters(), plain.parameters(), strict=True):
        if parameter.grad is not None:
            far = max(far, float((parameter.grad.to_local() - other.grad).abs().max()))  # type: ignore[attr-defined]
    staged.optimizer.zero_grad()
    return far
