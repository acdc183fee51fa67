"""A batch cut into microbatches: the step keeps its values, and what a microbatch cannot compute alone is refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stretto.diagnostics import StrettoError
from stretto.frontend.captured import Mode
from stretto.ir.equivalence import compare
from stretto.ir.equivalence.compare import Verdict
from stretto.ir.equivalence.integer_ranges import IntegerRange
from stretto.ir.pipelined_module import MICROBATCH
from torch import Tensor, nn

from ...subsets import only
from ..models import MODELS, SEQUENCE
from ..pipelining.pipelined import Cut

BATCH = 8


def plan(dp: int = 1, tp: int = 1, microbatches: int = 2, more: str = "") -> str:
    return f"mesh (pp=2, dp={dp}, tp={tp})\npipeline over pp {{ microbatches {microbatches} }}\n{more}"


def agrees(cut: Cut, **ranges: IntegerRange) -> None:
    """The cut module, interpreted with one rank for each microbatch, computes the same as the whole module."""
    comparison = compare(cut.whole, cut.cut, ranges=ranges)
    assert comparison.is_equal, "\n".join(map(str, comparison.of(Verdict.DIFFERENT)))
    assert comparison.error < 1e-9


def refused(model: nn.Module, inputs: dict[str, Any], mode: Mode = Mode.TRAIN) -> StrettoError:
    with pytest.raises(StrettoError) as caught:
        Cut(model, inputs, plan(), mode)
    return caught.value


SIZES = [(1, 1, 2), (2, 1, 4), (1, 2, 4), (2, 2, 2)]
DEFAULT = [("gpt2", (2, 1, 4))]


@pytest.mark.parametrize(
    ("name", "sizes"),
    only(DEFAULT, product(MODELS, SIZES)),
)
def test_a_language_model_is_cut_into_microbatches_and_gradients_are_reduced_once(
    name: str, sizes: tuple[int, int, int]
) -> None:
    dp, tp, microbatches = sizes
    ids = torch.zeros(BATCH, SEQUENCE, dtype=torch.int64)
    shards = 'shard "*.{up,c_fc,up_proj}" columns over tp\nshard "*.{down,mlp.c_proj,down_proj}" rows over tp\n'
    cut = Cut(MODELS[name](), {"input_ids": ids, "labels": ids}, plan(dp, tp, microbatches, shards))
    agrees(cut)
    assert dict(cut.cut.mesh)[MICROBATCH] == microbatches
    assert cut.cut.mesh[-1][0] == MICROBATCH
    joined = dict.fromkeys(cut.collectives())
    assert {kind for kind, _ in joined} == {"all_reduce"}
    assert {axes[0] for _, axes in joined} == {"dp"}
    assert cut.collectives() == cut.collectives("main")


class Rows(nn.Module):
    """Two layers on each row, and a loss of the caller's."""

    def __init__(self, loss: Any, *middle: nn.Module) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(6, 12), nn.Sequential(*middle), nn.Linear(12, 5)
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.loss(self.down(self.middle(torch.relu(self.up(x)))), y)


def rows(classes: bool = False) -> dict[str, Tensor]:
    y = torch.randint(0, 5, (BATCH,)) if classes else torch.randn(BATCH, 5)
    return {"x": torch.randn(BATCH, 6), "y": y}


def _weighted(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, weight=torch.tensor([0.1, 0.5, 2.0, 1.0, 3.0]), ignore_index=2)


def _of_tokens(scores: Tensor, y: Tensor) -> Tensor:
    weights = (y + 1).to(scores.dtype)
    return (F.cross_entropy(scores, y, reduction="none") * weights).sum() / weights.sum()


def _smoothed(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, label_smoothing=0.1)


def _ignoring(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, ignore_index=3)


@pytest.mark.parametrize("loss", [_weighted, _of_tokens, _smoothed, _ignoring])
@pytest.mark.parametrize("dp", [1, 2])
def test_a_mean_divides_by_the_count_of_the_whole_batch(loss: Any, dp: int) -> None:
    cut = Cut(Rows(loss), rows(classes=True), plan(dp, microbatches=4))
    agrees(cut)
    assert {kind for kind, _ in cut.collectives()} == {"all_reduce"}


@pytest.mark.parametrize("weights", [True, False])
def test_torchs_own_attention_has_tokens_first_and_is_cut(weights: bool) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.layer = nn.TransformerEncoderLayer(12, 3, 16, 0.0)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = x + self.attention(x, x, x, need_weights=weights)[0]
            return F.mse_loss(self.layer(x.transpose(0, 1)).transpose(0, 1), y)

    cut = Cut(Attends(), {"x": torch.randn(BATCH, 5, 12), "y": torch.randn(BATCH, 5, 12)}, plan(2))
    agrees(cut)
    assert set(cut.collectives()) == {("all_reduce", ("dp", MICROBATCH))}


def test_images_have_losses_of_pixels() -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            weight = torch.tensor([0.1, 0.5, 2.0, 1.0, 3.0])
            return F.cross_entropy(self.layer(x), y, weight=weight, ignore_index=2)

    inputs = {"x": torch.randn(BATCH, 3, 4, 4), "y": torch.randint(0, 5, (BATCH, 4, 4))}
    agrees(Cut(Pixels(), inputs, plan(2)), y=IntegerRange(5))


def test_losses_of_probabilities_are_cut() -> None:
    agrees(Cut(Rows(lambda scores, y: F.binary_cross_entropy(scores.sigmoid(), y.sigmoid())), rows(), plan(2)))


def _with_decay(model: Rows) -> Any:
    return lambda scores, y: F.mse_loss(scores, y) + 0.1 * sum(p.square().sum() for p in model.parameters())


def test_a_penalty_on_weights_counts_once() -> None:
    model = Rows(None)
    model.loss = _with_decay(model)
    for dp in (1, 2):
        agrees(Cut(model, rows(), plan(dp)))


def test_a_result_after_the_last_microbatch_may_depend_on_all_of_them() -> None:
    def loss(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = F.mse_loss(scores, y)
        return mean, mean.detach().exp(), scores.detach().amax()

    agrees(Cut(Rows(loss), rows(), plan(2)))


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_dropouts_are_the_same_in_any_number_of_microbatches(microbatches: int) -> None:
    model = Rows(F.mse_loss, nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2))
    agrees(Cut(model, rows(), plan(2, microbatches=microbatches)))


def test_norms_of_a_row_are_cut_and_batch_norms_that_do_not_train_too() -> None:
    agrees(Cut(Rows(F.mse_loss, nn.GroupNorm(3, 12)), rows(), plan(2)))
    agrees(Cut(Rows(F.mse_loss, nn.BatchNorm1d(12)).eval(), rows(), plan(2), Mode.INFER))


def test_outputs_of_all_microbatches_are_joined_at_the_end_and_before_ranks_join_theirs() -> None:
    cut = Cut(Rows(lambda scores, y: (scores, scores.sum())), rows(), plan(2), Mode.INFER)
    agrees(cut)
    assert cut.collectives() == [("all_gather", (MICROBATCH,)), ("all_reduce", ("dp", MICROBATCH))]


def test_a_gradient_is_summed_over_microbatches_before_ranks_scatter_it() -> None:
    cut = Cut(Rows(F.mse_loss), rows(), plan(2, more='shard "up.weight" dim 0 over dp'))
    agrees(cut)
    assert cut.collectives().count(("all_reduce", (MICROBATCH,))) == 1
    assert cut.collectives().count(("all_reduce", ("dp", MICROBATCH))) == 4


def test_unreduced_gradients_are_summed_over_microbatches() -> None:
    joined = Cut(Rows(F.mse_loss), rows(), plan(2), delay_reductions=True).collectives()
    assert joined.count(("all_reduce", (MICROBATCH,))) == 4
    assert joined.count(("all_reduce", ("dp", MICROBATCH))) == 1, "the loss is reduced in each step"


class Router(nn.Module):
    """Experts of rows, weighted; the loss asks for a balance over the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 5) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        mixed = sum(shares[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        most = F.one_hot(shares.argmax(-1), 3).to(x.dtype).mean(0)
        return F.mse_loss(mixed, y) + (most * shares.mean(0)).sum()


def test_a_batch_norm_that_trains_is_refused_at_its_line() -> None:
    error = refused(Rows(F.mse_loss, nn.BatchNorm1d(12)), rows())
    assert error.code == "E0403"
    assert error.message.endswith("in middle.0 takes its statistics of the whole batch")
    assert error.span is not None
    assert error.span.file.endswith("test_microbatch_axis.py")
    assert "group norm" in error.help


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Rows(lambda scores, y: (scores / scores.norm(dim=0)).sum()), "needs"),
        (Rows(lambda scores, y: (scores.sort(0)[0] * y).sum()), '"sort" needs rows of other microbatches'),
        (Rows(lambda scores, y: (scores @ scores.t()).exp().sum()), '"mm" needs rows of other microbatches'),
    ],
)  # fmt: skip
def test_a_model_whose_rows_meet_in_the_middle_is_refused_with_the_operation(model: nn.Module, message: str) -> None:
    error = refused(model, rows())
    assert error.code == "E0403"
    assert message in error.message


@pytest.mark.parametrize("model", [Rows(lambda scores, y: F.mse_loss(scores, y).sqrt()), Router()])
def test_a_loss_may_be_any_function_of_sums_over_the_batch(model: nn.Module) -> None:
    cut = Cut(model, rows(), plan(2))
    agrees(cut)
    assert {kind for kind, _ in cut.collectives()} == {"all_reduce"}


def test_an_operation_without_a_rule_is_refused_as_such() -> None:
    error = refused(Rows(lambda scores, y: F.bilinear(scores, y, torch.ones(2, 5, 5)).sum()), rows())
    assert error.code == "E0403"
    assert error.message.startswith('"_trilinear" has no sharding rule')


@pytest.mark.parametrize(
    ("dp", "microbatches", "expected", "help"),
    [
        (1, 3, "expected a multiple of 3 rows", "pass 6 or 9 rows, or take 2 or 4 microbatches"),
        (2, 8, "expected a multiple of 16 rows", "pass 16 rows, or take 2 or 4 microbatches"),
        (1, 16, "expected a multiple of 16 rows", "pass 16 rows, or take 4 or 8 microbatches"),
    ],
)
def test_microbatches_that_do_not_divide_the_batch_are_refused_in_the_plan(
    dp: int, microbatches: int, expected: str, help: str
) -> None:
    with pytest.raises(StrettoError) as caught:
        Cut(Rows(F.mse_loss), rows(), plan(dp, microbatches=microbatches))
    error = caught.value
    assert (error.code, error.expected, error.help) == ("E0402", expected, help)
    assert error.span is not None
    assert (error.span.file, error.span.line) == ("a.plan", 2)


def test_a_model_without_a_batch_has_no_microbatches() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self) -> Tensor:
            return self.weight.sum()

    with pytest.raises(StrettoError, match="no input with a batch") as caught:
        Cut(Nothing(), {}, plan())
    assert caught.value.code == "E0402"


def test_remarks_speak_of_microbatches_and_never_of_their_axis() -> None:
    cut = Cut(Rows(_ignoring, nn.Dropout(0.5)), rows(classes=True), plan(2))
    messages = [remark.message for remark in cut.remarks]
    assert "2 inputs cut into 2 microbatches" in messages
    assert any("over microbatches" in message for message in messages)
    assert not [message for message in messages if "over microbatch" in message and "microbatches" not in message]
    assert not [message for message in messages if 'axis "pp"' in message]
