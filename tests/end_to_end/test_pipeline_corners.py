"""Corner cases of models in stages: messages, ownership, values made once; all as on one device, to 1e-9."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stretto.frontend.captured import Mode
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import some
from .staged_models import IGNORED, Staged, assert_equal, captured, compiled
from .test_pipeline_features import CLASSES, ROWS, WIDTH, Net, plan, staged_model, trains, under


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Following(Net):
    """A buffer of a late stage that follows activations, and one that a late stage reads."""

    mean: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("shift", torch.rand(WIDTH))

    def scores(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        output: Tensor = self.head(x + self.shift)
        return output


@under(plan("zb-v", mesh=", dp=2"), slow=[plan("1f1b")])
def test_a_buffer_may_follow_activations_of_a_late_stage(text: str) -> None:
    trains(Following(), text)


class Normalized(Net):
    """A weight that is made of a parameter once, used in several stages, and a penalty on all parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        weight = self.mix / self.mix.norm()
        for layer in self.layers:
            x = layer(x @ weight)
        scores = self.head(x)
        penalty = sum(p.square().sum() for p in self.parameters())
        return F.cross_entropy(scores, labels, ignore_index=IGNORED) + 0.01 * penalty


@pytest.mark.parametrize("mesh", some(", dp=2", ""))
@pytest.mark.parametrize("schedule", some("zb-h1", "1f1b", "zb-v"))
def test_what_is_made_of_parameters_alone_is_made_once(schedule: str, mesh: str) -> None:
    trains(Normalized(), plan(schedule, mesh=mesh))


class Numbered(Net):
    """Rows that know their number in the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(ROWS, WIDTH)

    def scores(self, x: Tensor) -> Tensor:
        return super().scores(x + self.places(torch.arange(x.shape[0])) * x.shape[0])


@under(plan("zb-v", mesh=", dp=2"), slow=[plan("1f1b")])
def test_rows_know_their_number_in_the_whole_batch(text: str) -> None:
    trains(Numbered(), text)


class Shared(Net):
    """One layer everywhere, also in the loss."""

    def __init__(self) -> None:
        super().__init__(4)
        for index in range(1, 4):
            self.layers[index] = self.layers[0]


@under(plan("zb-h1", pp=4), slow=[plan("1f1b", pp=4), plan("zb-v"), plan("interleaved", mesh=", tp=2")])
def test_a_layer_may_be_in_all_stages(text: str) -> None:
    trains(Shared(), text)


class Beside(Net):
    """Beside the loss: a parameter's norm, an input as it came, numbers of the whole batch."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.scores(x)
        loss = F.cross_entropy(scores, labels, ignore_index=IGNORED)
        first = self.layers[0](x).detach()
        return {
            "loss": loss,
            "size": self.head.weight.detach().norm(),
            "x": x,
            "labels": labels,
            "most": scores.detach().amax(),
            "first": first,
            "turned": scores.detach().t(),
            "whole": loss.detach() * 2,
        }


@under(plan("1f1b", pp=3, mesh=", dp=2"), slow=[plan("1f1b"), plan("zb-v")])
def test_a_forward_may_return_anything_beside_the_loss(text: str) -> None:
    trains(Beside(), text, loss_only=False)


@under(plan("zb-h1", mesh=", dp=2"), slow=[plan("1f1b"), plan("zb-h1"), plan("zb-v")])
def test_inputs_may_want_gradients(text: str) -> None:
    staged = staged_model(Net())
    staged.inputs["x"].requires_grad_()
    assert_equal(compiled(staged, captured(staged), text))


@pytest.mark.parametrize("mesh", some("tp=2, dp=2, pp=2", "dp=2, pp=2, tp=2", "tp=2, pp=2"))
def test_the_pipeline_axis_may_be_anywhere_in_the_mesh(mesh: str) -> None:
    text = plan("zb-h1", mesh=", tp=2").replace("pp=2, tp=2", mesh)
    trains(Net(), text)


@under(plan("zb-v", mesh=", dp=2"), slow=[plan("1f1b", mesh=", dp=2")])
def test_parameters_may_be_sharded_over_the_axis_of_data(text: str) -> None:
    trains(Net(), text + 'shard "*.up", "*.down" dim 0 over dp\nshard "head" dim 0 over dp\n')


def test_stages_may_have_another_name() -> None:
    text = plan("zb-v").replace("pp", "depth")
    trains(Net(), text)


class Branches(nn.Module):
    """Two towers that meet at the end, neither of which needs the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Net(2), Net(2)
        self.head = nn.Linear(2 * CLASSES, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.head(torch.cat([self.left.scores(x), self.right.scores(x.flip(-1))], -1))
        return scores if labels is None else F.cross_entropy(scores, labels, ignore_index=IGNORED)


@under(plan("zb-v"), slow=[plan("1f1b"), plan("zb-h1", pp=4)])
def test_towers_may_lie_in_different_stages(text: str) -> None:
    trains(Branches(), text)


class Several(Net):
    """Inputs of other shapes: one number, a table of no rows, rows in another dim."""

    def forward(self, x: Tensor, labels: Tensor, scale: Tensor) -> Any:
        return F.cross_entropy(self.scores(x * scale), labels, ignore_index=IGNORED)


@under(plan("zb-v", mesh=", dp=2"), slow=[plan("1f1b")])
def test_a_number_may_be_an_input(text: str) -> None:
    staged = staged_model(Several(), scale=torch.tensor(0.5))
    assert_equal(compiled(staged, captured(staged), text))


class Sequences(Net):
    """Rows of several tokens."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.scores(x)
        return scores if labels is None else F.cross_entropy(scores.flatten(0, 1), labels.flatten())


@under(plan("zb-v", mesh=", tp=2"), slow=[plan("1f1b", mesh=", tp=2")])
def test_sequences_may_be_sharded_beside_stages(text: str) -> None:
    inputs = {"x": torch.randn(ROWS, 4, WIDTH), "labels": torch.zeros(ROWS, 4, dtype=torch.int64)}
    staged = Staged(Sequences(), inputs, {"labels": {"high": CLASSES, "ignore_index": IGNORED}})
    assert_equal(compiled(staged, captured(staged), f"{text}shard activations tokens over tp\n"))


class Detached(Net):
    """Stages through which no gradient goes."""

    def scores(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        x = x + self.layers[1](x.detach())
        output: Tensor = self.head(self.layers[2](x.detach()))
        return output


@under(plan("zb-h1", pp=4), slow=[plan("1f1b"), plan("zb-v")])
def test_gradients_may_end_inside(text: str) -> None:
    trains(Detached(), text)


class Late(Net):
    """Operations without parameters come first."""

    def scores(self, x: Tensor) -> Tensor:
        return super().scores(x.cumsum(-1).softmax(-1))


@under(plan("1f1b"), slow=[plan("zb-v")])
def test_a_model_may_begin_without_parameters(text: str) -> None:
    trains(Late(), text)


def test_a_frozen_model_infers() -> None:
    model = Net().eval().requires_grad_(False)
    staged = staged_model(model)
    step = captured(staged, Mode.INFER)
    assert_equal(compiled(staged, step, plan("1f1b", pp=4), Mode.INFER))


class Upscaling(nn.Module):
    """Microbatches are the input channels of a transposed convolution: each has the whole gradient of the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.share = nn.ConvTranspose1d(4, 5, 3), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return (self.share * self.up(x)).square().mean()


def test_a_gradient_that_each_microbatch_has_whole_is_taken_once() -> None:
    staged = Staged(Upscaling(), {"x": torch.randn(4, 3)}, {})
    assert_equal(compiled(staged, captured(staged), plan("gpipe", 2)))
