"""Regions of gradients and of autocast, inside each other: captured gradients are those of eager mode."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Mode, OutputKind
from torch import Tensor, nn

from ...subsets import some
from ..running import run_graph

REGIONS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled(False)": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
}
PAIRS = list(itertools.product(REGIONS, repeat=2))
DEEPER = [
    ("autocast", "no_grad", "enable_grad"),
    ("no_grad", "autocast", "enable_grad"),
    ("autocast", "autocast off", "inference_mode"),
    ("inference_mode", "enable_grad", "autocast"),
    ("enable_grad", "autocast off", "set_grad_enabled(False)"),
]


class Nested(nn.Module):
    """Regions inside each other; each computes on both of its sides with layers of its own."""

    def __init__(self, regions: Sequence[str], *, decorated: bool) -> None:
        super().__init__()
        self.regions, self.decorated = regions, decorated
        self.before = nn.ModuleList(nn.Linear(3, 3) for _ in regions)
        self.after = nn.ModuleList(nn.Linear(3, 3) for _ in regions)

    def forward(self, x: Tensor, depth: int = 0) -> Tensor:
        if depth == len(self.regions):
            return torch.sigmoid(2 * x.float())

        def body(value: Tensor) -> Tensor:
            hidden = self.before[depth](value.float())
            return (hidden * self.forward(hidden, depth + 1)).sin().float()

        region = REGIONS[self.regions[depth]]
        if self.decorated:
            inner = region()(body)(x)
        else:
            with region():
                inner = body(x)
        # What inference mode computed may be used by eager autograd as a copy only.
        return x + self.after[depth](inner.clone()).float()


class Sums(nn.Module):
    def __init__(self, terms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first, self.terms = nn.Linear(3, 3), nn.ModuleList(terms)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        terms = [term(hidden).square().mean() for term in self.terms]
        return torch.stack(terms).sum()


def wrong_gradients(model: nn.Module, *, differentiable_input: bool) -> list[str]:
    """The names of parameters, and "x", whose captured gradient is not that of eager mode."""
    x, eager = torch.randn(4, 3, requires_grad=differentiable_input), copy.deepcopy(model)
    other = x.detach().clone().requires_grad_(differentiable_input)
    loss = eager(other)
    loss.backward()
    captured = capture(model, (x,), {}, mode=Mode.TRAIN)
    found = run_graph(captured, model, [x])
    torch.testing.assert_close(found[OutputKind.OUTPUT, 0], loss)
    tensors = [*eager.named_parameters(), *([("x", other)] if differentiable_input else [])]
    assert any(tensor.grad is not None and tensor.grad.any() for _, tensor in tensors)
    return [name for name, tensor in tensors if not _equal(tensor.grad, found.get((OutputKind.GRADIENT, name)))]


def _equal(expected: Tensor | None, actual: Tensor | None) -> bool:
    """Whether two gradients are equal but for the rounding of another order of sums; none is zero."""
    if expected is None or actual is None:
        return all(value is None or not value.any() for value in (expected, actual))
    return bool((expected - actual).abs().max() <= 1e-4 * expected.abs().max())


@pytest.mark.parametrize(("nests", "decorated"), some((DEEPER, False), (PAIRS, False), ([*PAIRS, *DEEPER], True)))
def test_regions_inside_each_other_give_the_gradients_of_eager_mode(
    nests: Sequence[Sequence[str]], decorated: bool
) -> None:
    torch.manual_seed(0)
    model = Sums([Nested(regions, decorated=decorated) for regions in nests])
    assert wrong_gradients(model, differentiable_input=True) == []


class Returned(nn.Module):
    """Ops under no_grad that return their operand itself, which keeps its gradient."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.op = nn.Linear(3, 3), op

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        with torch.no_grad():
            scale = self.op(hidden).sin()
        return hidden * scale + self.layer.weight.sum()


def returned_and_used(hidden: Tensor) -> Tensor:
    first, second = hidden.float().contiguous().chunk(2)
    return torch.cat([second, first + 1])


OPERANDS_RETURNED = {
    "to the same dtype": lambda hidden: hidden.float(),
    "contiguous": lambda hidden: hidden.contiguous(),
    "both": lambda hidden: hidden.to(torch.float32).contiguous(),
    "changed in place": lambda hidden: hidden.mul_(3),
    "changed in place through a view": lambda hidden: hidden[0].mul_(3),
    "items of a tuple": returned_and_used,
}


def test_what_an_op_under_no_grad_returns_as_it_was_keeps_its_gradient() -> None:
    torch.manual_seed(0)
    for name, op in OPERANDS_RETURNED.items():
        assert wrong_gradients(Sums([Returned(op)]), differentiable_input=True) == [], name


def test_tuples_from_outside_are_detached_item_by_item() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            variance, mean = torch.var_mean(self.layer(x), -1, keepdim=True)
            with torch.no_grad():
                center = mean.sigmoid()
            return (variance * center + mean).square().mean()

    assert wrong_gradients(Parts(), differentiable_input=False) == []


def test_an_input_that_is_differentiated_is_detached_where_no_grad_reads_it() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                gate = x.sigmoid()
            return (self.layer(x) * gate).square().mean()

    assert wrong_gradients(Gated(), differentiable_input=True) == []
