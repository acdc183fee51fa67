"""Losses with label smoothing, class weights or teachers: no rank gathers logits, over rows or over classes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import only
from .checking import assert_report, compiled_model
from .traffic import messages

CLASSES = 45
"""No axis divides it."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def smoothed(logits: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, label_smoothing=0.1)


def weighted(logits: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, weight=w)


def weighted_and_smoothed_sum(logits: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, weight=w, label_smoothing=0.2, reduction="sum", ignore_index=3)


def of_each_row(logits: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (F.cross_entropy(logits, y, weight=w, reduction="none") * torch.arange(1.0, 1 + len(y))).sum()


def distilled(logits: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(-1), w.log_softmax(-1).expand_as(logits), log_target=True, reduction="batchmean")


class Classifier(nn.Module):
    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.embed, self.head, self.loss = nn.Embedding(CLASSES, 16), nn.Linear(16, CLASSES), loss
        self.register_buffer("w", torch.rand(CLASSES))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.head(self.embed(x)).flatten(0, 1), y.flatten(), self.w)


LOSSES = (smoothed, weighted, weighted_and_smoothed_sum, of_each_row, distilled)
VOCABULARY = 'shard "head" vocab over tp'
PLANS = {"rows": "mesh (dp=2)", "classes": f"mesh (tp=2)\n{VOCABULARY}", "both": f"mesh (dp=2, tp=2)\n{VOCABULARY}"}
DEFAULT = [(weighted_and_smoothed_sum, "both"), (smoothed, "rows"), (of_each_row, "classes"), (distilled, "both")]


@pytest.mark.parametrize(("loss", "cut"), only(DEFAULT, product(LOSSES, PLANS)))
def test_a_loss_gathers_no_logits(loss: Loss, cut: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randint(CLASSES, (4, 7)), torch.randint(CLASSES, (4, 7))
    y[0, 1] = 3 if loss is weighted_and_smoothed_sum else -100
    compiled = compiled_model(Classifier(loss), {"x": x, "y": y}, PLANS[cut], loss_only=True)
    assert_report(check(compiled.program))
    assert [message for message in messages(compiled) if message.kind in ("all_gather", "all_to_all")] == []
