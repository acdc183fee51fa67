"""Custom autograd functions under plans: a model with BLOOM's GELU, a fused norm and loss, and clamped gradients."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..frontend.custom_functions.functions import BloomGelu, Clamped, FusedLoss, FusedNorm
from ..subsets import only
from .checking import assert_report, compiled_model

PLANS = {
    "data": "mesh (dp=2)",
    "tensor": 'mesh (tp=2)\nshard "*.up" columns over tp\nshard "*.down" rows over tp',
    "both, with a sharded vocabulary": 'mesh (dp=2, tp=2)\nshard "*.up" columns over tp\nshard "*.down" rows over tp\n'
    'shard "embed", "head" vocab over tp',
    "pipeline": "mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }",
    "zero-bubble pipeline": "mesh (pp=2, dp=2)\npipeline over pp { schedule zb-h1  microbatches 4 }",
}
WORDS = 12


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = BloomGelu.apply(self.up(FusedNorm.apply(x, self.weight, 1e-5)))  # type: ignore[no-untyped-call]
        clamped: Tensor = Clamped.apply(self.down(hidden))  # type: ignore[no-untyped-call]
        return x + clamped


class Model(nn.Module):
    """Tokens and labels -> the loss; with `checkpoints`, blocks are checkpointed, reentrant or not."""

    def __init__(self, checkpoints: dict[str, bool] | None = None) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)
        self.layers = nn.ModuleList(Block(8) for _ in range(2))
        self.checkpoints = checkpoints

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x) if self.checkpoints is None else checkpoint(layer, x, **self.checkpoints)
        loss: Tensor = FusedLoss.apply(self.head(x).flatten(0, 1), labels.flatten())  # type: ignore[no-untyped-call]
        return loss


def inputs() -> dict[str, Tensor]:
    return {"tokens": torch.randint(0, WORDS, (8, 6)), "labels": torch.randint(0, WORDS, (8, 6))}


def assert_trains_as_eager(eager: nn.Module, model: nn.Module, tangent: float, **given: Any) -> None:
    losses = []
    for each in (eager, model):
        losses.append(each(**given))
        (tangent * losses[-1]).backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    for (name, expected), actual in zip(eager.named_parameters(), model.parameters(), strict=True):
        assert expected.grad is not None and actual.grad is not None, name
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-9, atol=1e-13)


def compiled(plan: str, **options: Any) -> tuple[Model, Any]:
    torch.manual_seed(0)
    eager = Model(**options).double()
    return eager, stretto.compile(copy.deepcopy(eager), plan=plan)


@pytest.mark.parametrize(
    ("plan", "mode"),
    only([("tensor", "train"), ("data", "eval"), ("pipeline", "train")], product(PLANS, ["train", "eval"])),
)
def test_a_step_has_eager_modes_gradients(plan: str, mode: str) -> None:
    eager, model = compiled(PLANS[plan])
    for each in (eager, model):
        each.train(mode == "train")
    tangent = 1.0 if "pipeline" in plan else 2.5
    assert_trains_as_eager(eager, model, tangent, **inputs())


@pytest.mark.parametrize("reentrant", only([False], [False, True]))
def test_a_checkpoint_around_functions_has_eager_modes_gradients(reentrant: bool) -> None:
    eager, model = compiled(PLANS["data"], checkpoints={"use_reentrant": reentrant})
    assert_trains_as_eager(eager, model, 2.5, **inputs())


@pytest.mark.parametrize("plan", only(["both, with a sharded vocabulary"], PLANS))
def test_a_program_equals_its_reference(plan: str) -> None:
    torch.manual_seed(0)
    about = {name: {"high": WORDS} for name in ("tokens", "labels")}
    assert_report(check(compiled_model(Model(), inputs(), PLANS[plan], about=about).program))


def test_a_pipeline_refuses_to_scale_gradients_that_are_clamped_and_steps_with_a_scale() -> None:
    eager, model = compiled(PLANS["pipeline"])
    given = inputs()
    loss = model(**given)
    with pytest.raises(StrettoError, match="'Clamped' is not linear in the gradient") as caught:
        (2.5 * loss).backward()
    assert caught.value.code == "E0337"
    model.zero_grad()
    model.step(**given, scale=2.5)
    (2.5 * eager(**given)).backward()
    for expected, actual in zip(eager.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-9, atol=1e-13)


def test_without_gradients_only_the_forward_runs() -> None:
    eager, model = compiled(PLANS["tensor"])
    given = inputs()
    with torch.no_grad():
        torch.testing.assert_close(model(**given), eager(**given), rtol=1e-12, atol=0)


def test_equal_layers_with_functions_are_folded() -> None:
    program = compiled_model(Model(), inputs(), PLANS["data"]).program
    assert "layers_forward" in program.functions and "layers_backward" in program.functions


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own call
def test_dynamo_s_form_of_a_function_keeps_its_backward_too() -> None:
    torch.manual_seed(0)
    eager = Model().double()
    model = torch.compile(copy.deepcopy(eager), backend="stretto", options={"plan": PLANS["data"]})
    assert_trains_as_eager(eager, model, 2.5, **inputs())
