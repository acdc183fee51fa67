"""Losses of flattened tokens: with the tokens sharded, none gathers logits or hidden states."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from stretto.driver.compile.request import Compiled
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import only
from .checking import assert_report, compiled_model
from .traffic import Message, messages
from .work import flops_of

WIDTH, CLASSES, TOKENS = 6, 12, 8
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def rows(tensor: Tensor) -> Tensor:
    """(batch, tokens, ..) as (batch * tokens, ..)."""
    return tensor.reshape(-1, *tensor.shape[2:])


def weights(tensor: Tensor) -> Tensor:
    return torch.linspace(0.5, 2.0, tensor.shape[-1], dtype=tensor.dtype)


def teacher(logits: Tensor) -> Tensor:
    return rows((logits.detach() * 0.7 + 0.1).sin())


def weighted(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return F.cross_entropy(rows(logits), rows(labels), weight=weights(logits))


def smoothed(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return F.cross_entropy(rows(logits), rows(labels), label_smoothing=0.1)


def weighted_and_smoothed_sum(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    options = {"label_smoothing": 0.1, "ignore_index": 3, "reduction": "sum"}
    return F.cross_entropy(rows(logits), rows(labels).clamp(min=0), weight=weights(logits), **options)


def masked(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    losses = F.cross_entropy(rows(logits), rows(labels), reduction="none")
    return (losses * rows(mask)).sum() / mask.sum()


def of_probabilities(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return F.cross_entropy(rows(logits), teacher(logits).abs(), weight=weights(logits), label_smoothing=0.1)


def nll(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return F.nll_loss(rows(F.log_softmax(logits, -1)), rows(labels), weight=weights(logits))


def distilled_of_logs(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    targets = F.log_softmax(teacher(logits) / 2, -1)
    return F.kl_div(F.log_softmax(rows(logits) / 2, -1), targets, reduction="batchmean", log_target=True)


def binary(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    targets = rows((logits.detach() > 0).to(logits.dtype))
    return F.binary_cross_entropy_with_logits(rows(logits), targets, pos_weight=weights(logits))


def padded_shift(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
    return F.cross_entropy(rows(logits), rows(shifted), weight=weights(logits), reduction="sum") / (shifted > 0).sum()


def shifted(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """All tokens but the last, as language models of Hugging Face have it where no padding replaces it."""
    kept = logits[..., :-1, :].contiguous()
    return F.cross_entropy(kept.view(-1, CLASSES), labels[..., 1:].contiguous().view(-1), label_smoothing=0.1)


def z_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return F.cross_entropy(rows(logits), rows(labels)) + 0.1 * rows(logits).logsumexp(-1).square().mean()


def of_transposed(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    losses = F.cross_entropy(logits.transpose(1, 2), labels, weight=weights(logits), reduction="none")
    return (losses * mask).sum() / mask.sum()


def distilled(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    targets = F.softmax(rows(logits.detach().sin()), -1)
    return F.kl_div(F.log_softmax(rows(logits), -1), targets, reduction="sum")


def gathered(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    index = rows(labels).clamp(min=0).unsqueeze(1)
    chances = rows(logits).softmax(-1).gather(1, index).squeeze(1)
    return -((1 - chances) ** 2 * chances.log() * rows(mask)).sum()


def indexed(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """An index of -1 counts from the end."""
    chances = rows(logits).log_softmax(-1)
    return -(chances[torch.arange(len(chances)), rows(labels).clamp(min=-1)] * rows(mask)).sum()


def of_one_hot(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    targets = F.one_hot(rows(labels).clamp(min=0), CLASSES).to(logits.dtype)
    return F.cross_entropy(rows(logits), targets * 0.9 + 0.1 / CLASSES)


def squared(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return F.mse_loss(rows(logits), teacher(logits))


def focal(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    losses = F.cross_entropy(rows(logits), rows(labels), reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def with_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    chances = rows(logits).log_softmax(-1)
    return F.nll_loss(chances, rows(labels)) + 0.1 * (chances.exp() * chances).sum(-1).mean()


LOSSES = (
    weighted, smoothed, weighted_and_smoothed_sum, masked, of_probabilities, nll, distilled_of_logs, binary,
    padded_shift, squared, focal, with_entropy, shifted, z_loss, of_transposed, distilled, gathered, indexed,
    of_one_hot,
)  # fmt: skip


def all_of_them(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    losses = [loss(logits, labels, mask) for loss in LOSSES]
    return sum((1 + i) / 10 * loss for i, loss in enumerate(losses))  # type: ignore[return-value]


class Tagger(nn.Module):
    """Hidden states, flattened before a norm, logits, and a loss."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(CLASSES, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.loss = loss

    def forward(self, x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        hidden = self.norm(self.embed(rows(x)).tanh())
        return self.loss(self.head(hidden).view(*x.shape, CLASSES), labels, mask)


CUT_TOKENS = "shard inputs dim 1 over cp"
PLANS = {
    ("dp, cp", 4): f"mesh (dp=2, cp=2)\nshard inputs dim 0 over dp\n{CUT_TOKENS}",
    ("cp", 1): f"mesh (cp=2)\n{CUT_TOKENS}",
    ("cp, tp", 4): f'mesh (cp=2, tp=2)\n{CUT_TOKENS}\nshard "head" vocab over tp',
    ("cp, tp", 1): f'mesh (cp=2, tp=2)\n{CUT_TOKENS}\nshard "head" vocab over tp',
}
DEFAULT = [(weighted_and_smoothed_sum, ("dp, cp", 4)), (shifted, ("cp", 1)), (gathered, ("cp, tp", 4))]


def is_large(message: Message, batch: int) -> bool:
    """Whether a message gathers or exchanges as much as a rank's logits or hidden states, over any axis."""
    elements = torch.Size(message.result_shape).numel()
    return message.kind in ("all_gather", "all_to_all") and elements > batch * TOKENS


@pytest.mark.parametrize(("loss", "plan"), only(DEFAULT, product((all_of_them, *LOSSES), PLANS)))
def test_a_loss_of_sharded_tokens_gathers_neither_logits_nor_hidden_states(loss: Loss, plan: tuple[str, int]) -> None:
    program = _program(loss, PLANS[plan], plan[1])
    assert [message for message in messages(program) if is_large(message, plan[1])] == []
    assert_report(check(program.program))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_a_rank_does_its_share_of_the_work(loss: Loss) -> None:
    plans = "mesh (cp=1)", PLANS["cp", 1], PLANS["dp, cp", 4]
    alone, half, quarter = (flops_of(_program(loss, plan, 4)) for plan in plans)
    assert (half, quarter) == (alone / 2, alone / 4)


def _program(loss: Loss, plan: str, batch: int) -> Compiled:
    torch.manual_seed(0)
    x, labels = (torch.randint(CLASSES, (batch, TOKENS)) for _ in range(2))
    mask = torch.rand(batch, TOKENS).round()
    labels[0, 1], mask[:, 0] = -100, 1
    return compiled_model(Tagger(loss), {"x": x, "labels": labels, "mask": mask}, plan, loss_only=True)
