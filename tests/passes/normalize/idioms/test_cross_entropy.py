"""log_softmax and nll_loss become nn.cross_entropy, in every form that can be summed over ranks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .steps import Function, assert_kept, misses, names, raised, step

ROWS, CLASSES = 6, 9
LOGITS = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([3, -100, 0, 8, -100, 5])
GRAD = torch.tensor(0.7, dtype=torch.float64)


def mean(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def total(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def ignoring_class_three(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=3)


@pytest.mark.parametrize("loss", [mean, total])
def test_a_loss_and_its_backward_are_raised(loss: Function) -> None:
    assert raised(step(loss, (LOGITS, LABELS), (0,))) == ["nn.cross_entropy", "nn.cross_entropy_backward"]


@pytest.mark.parametrize("loss", [mean, total])
def test_values_are_kept(loss: Function) -> None:
    assert_kept(step(loss, (LOGITS, LABELS), (0,)), (LOGITS, LABELS, GRAD))


def test_the_ignored_label_may_be_a_class() -> None:
    labels = LABELS.clamp(min=0)
    assert_kept(step(ignoring_class_three, (LOGITS, labels), (0,)), (LOGITS, labels, GRAD))


def test_a_mean_of_no_rows_is_nan_and_its_gradient_zero() -> None:
    ignored = torch.full((ROWS,), -100)
    assert_kept(step(mean, (LOGITS, LABELS), (0,)), (LOGITS, ignored, GRAD))


def test_the_backward_reads_logits_and_not_log_probabilities() -> None:
    module = step(mean, (LOGITS, LABELS), (0,))
    raised(module)
    assert not any("softmax" in name or "nll" in name for name in names(module))


def test_sixteen_bit_logits_are_summed_in_float32() -> None:
    logits, grad = LOGITS.bfloat16(), GRAD.bfloat16()
    assert_kept(step(mean, (logits, LABELS), (0,)), (logits, LABELS, grad), tolerance=2e-2)


def test_a_loss_without_a_backward_is_raised() -> None:
    assert raised(step(mean, (LOGITS, LABELS))) == ["nn.cross_entropy"]


def test_class_weights_are_left() -> None:
    def weighted(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, weight)

    module = step(weighted, (LOGITS, LABELS, LOGITS[0].abs()), (0,))
    assert misses(module) == ["cross-entropy left as it is: classes have weights"]


def test_losses_per_row_are_left() -> None:
    def per_row(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    [message] = misses(step(per_row, (LOGITS, LABELS), (0,)))
    assert "not reduced" in message


def test_log_probabilities_that_are_used_elsewhere_keep_the_chain() -> None:
    def with_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        chances = F.log_softmax(logits, 1)
        return F.nll_loss(chances, labels) + chances.exp().sum()

    [message] = misses(step(with_entropy, (LOGITS, LABELS), (0,)))
    assert 'also used by "aten.exp.default"' in message
