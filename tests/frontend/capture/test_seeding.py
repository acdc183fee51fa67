"""A forward that seeds torch's generator is refused at its line; one that forks it or checkpoints is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import CaptureError, Mode
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MANUAL_SEED = torch.manual_seed


class Net(nn.Module):
    """A linear layer, and a forward that is given."""

    def __init__(self, body: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.linear, x).sum()


def seeded(linear: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return F.dropout(linear(x), 0.5)


def seeded_by_the_module(linear: nn.Module, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return F.dropout(linear(x), 0.5)


def restored(linear: nn.Module, x: Tensor) -> Tensor:
    state = torch.get_rng_state()
    first: Tensor = F.dropout(linear(x), 0.5)
    torch.set_rng_state(state)
    return first + F.dropout(linear(x), 0.5)


def forked(linear: nn.Module, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return F.dropout(linear(x), 0.5)


def checkpointed(linear: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = checkpoint(lambda y: F.dropout(linear(y), 0.5), x, use_reentrant=False)
    return result


@pytest.mark.parametrize("body", [seeded, seeded_by_the_module, restored])
def test_a_forward_that_seeds_is_refused_at_its_line(body: Callable[[nn.Module, Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"forward calls torch\.(manual_seed|set_rng_state)") as caught:
        capture(Net(body), (torch.randn(2, 4),), {}, mode=Mode.TRAIN)
    assert caught.value.code == "E0228"
    assert caught.value.span is not None and caught.value.span.file == __file__
    assert "seed" in caught.value.span.text or "set_rng_state" in caught.value.span.text
    assert torch.manual_seed is MANUAL_SEED


def test_a_forward_that_seeds_through_the_generator_is_refused() -> None:
    def body(linear: nn.Module, x: Tensor) -> Tensor:
        torch.default_generator.manual_seed(1234)
        return F.dropout(linear(x), 0.5)

    with torch.random.fork_rng(), pytest.raises(CaptureError, match="forward seeds torch's generator") as caught:
        torch.manual_seed(1)
        capture(Net(body), (torch.randn(2, 4),), {}, mode=Mode.TRAIN)
    assert caught.value.code == "E0228" and caught.value.span is not None


@pytest.mark.parametrize("body", [forked, checkpointed])
def test_forks_and_checkpoints_are_left_alone(body: Callable[[nn.Module, Tensor], Tensor]) -> None:
    assert capture(Net(body), (torch.randn(2, 4),), {}, mode=Mode.TRAIN)
