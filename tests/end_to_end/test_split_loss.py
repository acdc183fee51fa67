"""`split loss into N`: values and gradients are those of one device, and the scores are never whole."""

from __future__ import annotations

from functools import cache
from math import prod

import pytest
import torch
from stretto.dsl import PlanError
from stretto.runtime.checks.program_check import check
from stretto.runtime.program.program import Program
from stretto.runtime.prover import prove
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import some
from .checking import assert_equal, assert_report, compiled, compiled_model
from .models import MODELS, Case, Size, plan

BATCH, SEQ, CLASSES = 4, 8, 50
SIZE = {"width": 16, "heads": 4, "head": 4, "inner": 24}


class Head(nn.Module):
    """A head with one of several losses."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss, self.up, self.head = loss, nn.Linear(8, 16), nn.Linear(16, CLASSES)
        self.register_buffer("weight", torch.rand(CLASSES) + 0.1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scores = self.head(torch.tanh(self.up(x))).flatten(0, 1)
        labels = labels.flatten()
        match self.loss:
            case "capped":
                return F.cross_entropy(30 * torch.tanh(scores / 30), labels)
            case "smoothed":
                return F.cross_entropy(scores, labels, label_smoothing=0.1)
            case "weighted":
                return F.cross_entropy(scores, labels, weight=self.weight, label_smoothing=0.1)
            case "sum":
                return F.cross_entropy(scores, labels, reduction="sum")
            case "rows":
                return F.cross_entropy(scores, labels, reduction="none").square().mean()
            case "z":
                return F.cross_entropy(scores, labels) + 1e-2 * torch.logsumexp(scores, -1).square().mean()
        return F.cross_entropy(scores, labels)


def _program(loss: str, mesh: str, lines: str = "split loss into 4") -> Program:
    inputs = {"x": torch.zeros(BATCH, SEQ, 8), "labels": torch.zeros(BATCH, SEQ, dtype=torch.int64)}
    vocabulary = 'shard "head" vocab over tp\n' if "tp" in mesh else ""
    about = {"labels": {"high": CLASSES, "ignore_index": True}}
    return compiled_model(Head(loss), inputs, f"mesh ({mesh})\n{vocabulary}{lines}", about=about).program


def largest_scores(program: Program, classes: int) -> int:
    """The most elements of a tensor of rows of classes."""
    return max(prod(each.shape) for each in program.types if each.shape[-1:] == (classes,) and len(each.shape) > 1)


@pytest.mark.parametrize(
    ("loss", "mesh"),
    some(
        ("weighted", "dp=2"),
        *((loss, mesh) for loss in ("plain", "capped", "smoothed", "sum", "rows", "z") for mesh in ("dp=2", "tp=2")),
        ("weighted", "tp=2"),
        ("plain", "dp=2, tp=2"),
    ),
)
def test_every_loss_is_that_of_one_device_and_its_scores_are_never_whole(loss: str, mesh: str) -> None:
    torch.manual_seed(0)
    program = _program(loss, mesh)
    assert_report(check(program))
    ranks = 2 if "dp" in mesh else 1
    classes = CLASSES // 2 if "tp" in mesh else CLASSES
    assert largest_scores(program, classes) <= max(BATCH * SEQ * classes // ranks // 4, 16 * classes)
    assert prove(program).safe


@pytest.mark.parametrize(
    ("loss", "lines", "message"),
    [
        ("plain", "split loss into 3", "the scores have rows of 4 x 8, which 3 chunks do not divide"),
    ],
)
def test_what_cannot_be_chunked_is_refused(loss: str, lines: str, message: str) -> None:
    with pytest.raises(PlanError) as refused:
        _program(loss, "dp=2", lines)
    assert refused.value.code == "E0138" and message in refused.value.message and refused.value.span is not None


@pytest.mark.slow
def test_a_model_without_a_cross_entropy_is_refused() -> None:
    with pytest.raises(PlanError, match="no linear layer of the model makes the scores of a cross-entropy"):
        compiled_model(nn.Linear(4, 4), {"input": torch.zeros(4, 4)}, "mesh (dp=2)\nsplit loss into 2")


@cache
def _case(model: str, vocab: int = 44, seq: int = 8) -> Case:
    return MODELS[model](Size(batch=4, layers=2, vocab=vocab, seq=seq, **SIZE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mesh", "lines"),
    [
        ("gpt", "dp=2", ""),
        ("gpt", "dp=2, tp=2", "shard activations tokens over tp\n"),
        ("gpt", "dp=2, cp=2", "shard inputs dim 1 over cp\n"),
        ("gpt", "pp=2", "pipeline over pp { microbatches 2 }\n"),
        ("gpt", "pp=2, dp=2", "pipeline over pp { microbatches 2  schedule zb-v }\nzero 2 over dp\n"),
        ("llama", "dp=2, tp=2", 'zero 3 over dp\nrecompute "*.mlp", attention\n'),
        ("gpt2", "dp=2", "zero 1 over dp\n"),
    ],
)
def test_a_model_trains_as_on_one_device(model: str, mesh: str, lines: str) -> None:
    assert_equal(_case(model), plan(model, mesh, f"{lines}split loss into 2"))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "chunks"), [("gpt", 4), ("gpt", 8), ("llama", 8)])
def test_the_bytes_of_scores_that_are_alive_fall_by_the_number_of_chunks(model: str, chunks: int) -> None:
    text = plan(model, "dp=2")
    case = _case(model, 1000, 128)
    whole, split = (compiled(case, each).program for each in (text, f"{text}\nsplit loss into {chunks}"))
    assert largest_scores(whole, 1000) == 2 * 128 * 1000 == chunks * largest_scores(split, 1000)
    scores = 2 * 128 * 1000 * 8
    twice = 2 * (1 - 1 / chunks) * scores  # the scores, and the softmax that becomes their gradient
    assert prove(whole).peak_bytes - prove(split).peak_bytes >= 0.9 * twice
