"""Features of models and plans beside a pipeline: everything is as on one device, to 1e-9 in float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from stretto.frontend.captured import Mode
from stretto.runtime.checks.report import CheckReport
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import only, some
from .staged_models import IGNORED, Staged, assert_equal, captured, compiled

ROWS, WIDTH, CLASSES = 8, 6, 5


class Layer(nn.Module):
    """A residual feed-forward with an optional dropout."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width) to the same."""
        return x + self.drop(self.down(F.gelu(self.up(self.norm(x)))))


class Net(nn.Module):
    """Layers and scores, with room for what a test adds."""

    def __init__(self, layers: int = 3, drop: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(drop) for _ in range(layers))
        self.head = nn.Linear(WIDTH, CLASSES)

    def scores(self, x: Tensor) -> Tensor:
        """(rows, width) to (rows, classes)."""
        for layer in self.layers:
            x = layer(x)
        output: Tensor = self.head(x)
        return output

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """Scores, or the mean cross-entropy of labels that are not ignored."""
        scores = self.scores(x)
        return scores if labels is None else F.cross_entropy(scores, labels, ignore_index=IGNORED)


def staged_model(model: nn.Module, **more: Tensor) -> Staged:
    """A call of a model with rows and labels, some of which are ignored: not as many in every microbatch."""
    x, labels = torch.randn(ROWS, WIDTH), torch.zeros(ROWS, dtype=torch.int64)
    about = {"labels": {"high": CLASSES, "ignore_index": IGNORED}}
    return Staged(model, {"x": x, "labels": labels, **more}, about)


def plan(schedule: str = "zb-h1", microbatches: int = 4, pp: int = 2, more: str = "", mesh: str = "") -> str:
    shards = 'shard "*.up" columns over tp\nshard "*.down" rows over tp\n' if "tp" in mesh else ""
    text = f"schedule {schedule}  microbatches {microbatches} {more}"
    return f"mesh (pp={pp}{mesh})\n{shards}pipeline over pp {{ {text} }}\n"


def under(*default: str, slow: Sequence[str] = ()) -> pytest.MarkDecorator:
    """A test under each of some plans, its `text`; the default run has those that are not slow."""
    plans = [*default, *slow]
    ids = [" ".join(re.findall(r"(?<=mesh \()[^)]*|(?<=schedule )\S+", text)) for text in plans]
    return pytest.mark.parametrize("text", only(default, plans), ids=ids)


def trains(model: nn.Module, *plans: str, **how: Any) -> list[CheckReport]:
    staged = staged_model(model)
    step = captured(staged, **how)
    return [assert_equal(compiled(staged, step, plan)) for plan in plans]


def infers(model: nn.Module, *plans: str) -> None:
    staged = staged_model(model.eval())
    step = captured(staged, Mode.INFER)
    for plan in plans:
        assert_equal(compiled(staged, step, plan, Mode.INFER))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("mesh", some(", dp=2, tp=2", ", tp=2", ", dp=2"))
@pytest.mark.parametrize("schedule", some("dualpipe-v", "1f1b", "zb-h1", "zb-v"))
def test_tensors_are_sharded_beside_stages(schedule: str, mesh: str) -> None:
    trains(Net(), plan(schedule, mesh=mesh))


@pytest.mark.parametrize("schedule", some("zb-v", "gpipe", "interleaved"))
def test_one_stage_and_one_microbatch_are_a_pipeline_too(schedule: str) -> None:
    trains(Net(), plan(schedule, 1, 1), plan(schedule, 4, 1), plan(schedule, 1, 2))


@under(plan("1f1b", pp=4), slow=[plan("zb-h1", pp=3), plan("zb-v", pp=2)])
def test_stages_are_cut_inside_layers(text: str) -> None:
    trains(Net(1), text)


CUTS = ['split "layers.0.down"', "balance memory", 'split "layers.1"', "balance layers", 'split "head"']
INTERLEAVED_CUTS = ['split "layers.{1,2}", "head"', "balance layers"]


@pytest.mark.parametrize(
    ("schedule", "cut"),
    only(
        [("zb-h1", CUTS[0]), ("zb-h1", CUTS[1]), ("interleaved", INTERLEAVED_CUTS[0])],
        [*product(["zb-h1"], CUTS), *product(["interleaved"], INTERLEAVED_CUTS)],
    ),
)
def test_the_plan_says_where_stages_begin_and_how_they_are_balanced(schedule: str, cut: str) -> None:
    trains(Net(), plan(schedule, more=cut))


@under(plan("zb-h1", pp=3), slow=[plan("1f1b"), plan("zb-v")])
@pytest.mark.parametrize("frozen", some("layers.0", "layers.1.up", "head", "layers"))
def test_frozen_parameters_have_no_gradient(frozen: str, text: str) -> None:
    model = Net()
    model.get_submodule(frozen).requires_grad_(False)
    trains(model, text)


@under(plan("zb-v"), slow=[plan("1f1b")])
def test_parameters_that_nothing_uses_belong_to_the_first_stage(text: str) -> None:
    model = Net()
    model.spare = nn.Linear(3, 3)
    trains(model, text)


class Tied(Net):
    """Two layers that are one, and an embedding that is the head."""

    def __init__(self) -> None:
        super().__init__(4)
        self.layers[3] = self.layers[0]
        self.layers[1].up.weight = self.layers[2].up.weight
        self.embed = nn.Linear(CLASSES, WIDTH, bias=False)
        self.embed.weight = nn.Parameter(torch.randn(CLASSES, WIDTH).t().contiguous())

    def scores(self, x: Tensor) -> Tensor:
        return super().scores(x) + x @ self.embed.weight


@pytest.mark.parametrize("schedule", some("zb-v", "1f1b", "zb-h1", "interleaved"))
@pytest.mark.parametrize("mesh", some(", tp=2", "", ", dp=2"))
def test_weights_that_stages_share_get_the_sum_of_their_gradients(mesh: str, schedule: str) -> None:
    trains(Tied(), plan(schedule, pp=2, mesh=mesh))


class Counting(Net):
    """Buffers: one that is read, one that counts calls, one that follows the whole batch."""

    mean: Tensor
    calls: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(WIDTH))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def scores(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.calls.add_(1)
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return super().scores(x * self.scale)


@under(plan("zb-v", mesh=", dp=2"), slow=[plan("1f1b"), plan("zb-h1")])
def test_buffers_are_read_and_written_once_a_step(text: str) -> None:
    trains(Counting(), text)


class Saying(Net):
    """A loss, and what people log beside it."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.scores(x)
        if labels is None:
            return {"scores": scores, "most": scores.argmax(-1), "sum": scores.sum()}
        loss = F.cross_entropy(scores, labels, ignore_index=IGNORED)
        right = ((scores.argmax(-1) == labels) & (labels != IGNORED)).sum()
        return {"loss": loss, "scores": scores.detach(), "right": right, "x": x * 2}


@under(plan("zb-h1", mesh=", dp=2, tp=2"), slow=[plan("1f1b"), plan("zb-v")])
def test_outputs_beside_the_loss_are_returned_too(text: str) -> None:
    trains(Saying(), text, loss_only=False)


@pytest.mark.parametrize("kind", some(Saying, Net, Counting))
def test_results_of_inference_are_global(kind: type[Net]) -> None:
    infers(kind(), plan("forward-only"), plan("1f1b", pp=3), plan("zb-v", mesh=", tp=2"), plan("1f1b", mesh=", dp=2"))


@under(plan("zb-v", 4, mesh=", dp=2"), slow=[plan("1f1b", 8)])
def test_losses_count_the_tokens_of_the_whole_batch(text: str) -> None:
    class Weighted(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            scores = self.scores(x)
            if labels is None:
                return scores
            kept = (labels != IGNORED).to(scores.dtype)
            losses = F.cross_entropy(scores, labels.clamp(min=0), reduction="none")
            return (losses * kept * (labels + 1)).sum() / kept.sum()

    trains(Weighted(), text)


@pytest.mark.slow
def test_floats_that_cross_may_be_cast() -> None:
    trains(Net(), plan("1f1b", more="transfer bf16"), plan("zb-v", more="transfer fp16", mesh=", tp=2"))


@under(plan("zb-h1", mesh=", tp=2"), slow=[plan("1f1b")])
def test_layers_compute_in_another_dtype(text: str) -> None:
    trains(Net(), f"{text}\nprecision {{ compute bf16  reduce fp32 }}", compute=torch.bfloat16)


@pytest.mark.parametrize(("schedule", "mesh"), some(("zb-v", ", tp=2"), ("1f1b", "")))
@pytest.mark.parametrize("microbatches", some(4, 1, 2, 8))
def test_masks_of_dropout_are_those_of_one_device(microbatches: int, schedule: str, mesh: str) -> None:
    trains(Net(drop=0.4), plan(schedule, microbatches, mesh=mesh))
