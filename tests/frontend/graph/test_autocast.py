"""Regions of autocast: what is captured, and the reference, compute what eager torch computes in them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Mode
from stretto.runtime.program.reference import Promote, run_reference
from stretto.runtime.program.reference_records import Reference
from torch import Tensor, nn


class Regions(nn.Module):
    """A region with one inside it that is switched off, and one under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            short = self.first(x)
            with torch.autocast("cpu", enabled=False):
                exact = self.second(short.float())
            with torch.no_grad():
                scale = self.second(x)
        return {"short": short, "exact": exact, "scale": scale, "after": self.second(x)}


def around(enabled: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if enabled else nullcontext()


@pytest.mark.parametrize("inside_another", [False, True])
def test_reference_and_graph_give_what_eager_torch_gives(inside_another: bool) -> None:
    torch.manual_seed(0)
    model, x = Regions(), torch.randn(2, 4)
    with around(inside_another):
        expected = model(x)
        captured = capture(model, (x,), {}, mode=Mode.INFER)
    reference = Reference.from_json(captured.reference)
    values: dict[tuple[str, str], Tensor] = {("parameter", name): item for name, item in model.named_parameters()}
    outputs, _ = run_reference(reference, values, [x])
    graphed = captured.graph(*[*model.parameters(), x])
    for (name, eager), actual, other in zip(expected.items(), outputs, graphed, strict=True):
        assert actual.dtype == other.dtype == eager.dtype, name
        assert torch.equal(actual, eager) and torch.equal(other, eager), name
    raised, _ = run_reference(reference, values, [x], Promote.FLOAT64)
    assert {item.dtype for item in raised} == {torch.float64}
    assert not torch.is_autocast_enabled("cpu")


def test_a_backward_is_in_no_region_as_in_eager_torch() -> None:
    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return self.linear(x).square().sum()

    with torch.autocast("cpu", torch.bfloat16):
        captured = capture(Exact(), (torch.randn(2, 4),), {}, mode=Mode.TRAIN)
    dtypes = {node.meta["val"].dtype for node in captured.graph.graph.nodes if "val" in node.meta}
    assert dtypes == {torch.float32}


def test_a_region_that_an_error_leaves_open_is_ended() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(Exception, match="E0226"):
        capture(Failing(), (torch.ones(2),), {}, mode=Mode.INFER)
    assert not torch.is_autocast_enabled("cpu")
