"""Kernels that take strides for granted get them, whatever the ops before them made: gradients equal those of eager."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import stretto
import torch
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import only

Body = Callable[[nn.Module, Tensor], Tensor]
PLANS = {
    "dp": "mesh (dp=2)",
    "tp": 'mesh (tp=2)\nshard "out" columns over tp',
    "dp+tp": 'mesh (dp=2, tp=2)\nshard "out" columns over tp',
}


class Around(nn.Module):
    """A layer before and a layer after the op in question."""

    def __init__(self, body: Body, inside: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.inp, self.out = nn.Linear(6, 6), nn.Linear(6, 6)
        self.inside = inside if inside is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.inp(x)).pow(2).mean()


def _determinants(model: nn.Module, h: Tensor) -> Tensor:
    square = h @ h.transpose(1, 2) + 3 * torch.eye(4, dtype=h.dtype)
    return torch.linalg.det(square.transpose(1, 2)) + torch.linalg.slogdet(square.transpose(1, 2))[1]


def _square(h: Tensor) -> Tensor:
    return h.transpose(1, 2) @ h + 3 * torch.eye(6, dtype=h.dtype)


BODIES: dict[str, tuple[Body, nn.Module | None]] = {
    "group norm with a transposed gradient": (
        lambda model, h: model.out(model.inside(h.transpose(1, 2).contiguous()).transpose(1, 2)), nn.GroupNorm(2, 6),
    ),
    "group norm with a transposed input": (
        lambda model, h: model.inside(model.out(h).transpose(1, 2)), nn.GroupNorm(3, 6),
    ),
    "layer norm of a transposed input": (
        lambda model, h: model.inside(model.out(h).transpose(0, 1)), nn.LayerNorm(6),
    ),
    "determinants": (lambda model, h: _determinants(model, model.out(h)), None),
    "inverse": (
        lambda model, h: torch.linalg.inv_ex(_square(h).transpose(1, 2))[0], None,
    ),
    "adaptive max pooling in 3d": (
        lambda model, h: F.adaptive_max_pool3d(model.out(h).reshape(4, 2, 2, 2, 3).transpose(2, 4), (2, 1, 2)), None,
    ),
    "embedding bag": (
        lambda model, h: F.embedding_bag(
            torch.arange(12).reshape(3, 4).t() % 6, model.out(h)[0].t(), mode="sum",
            per_sample_weights=h[:, 0, :3],
        ), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("plan", only(["dp+tp"], PLANS))
@pytest.mark.parametrize("name", BODIES)
def test_gradients_equal_those_of_eager(name: str, plan: str) -> None:
    torch.manual_seed(0)
    body, inside = BODIES[name]
    plain, x = Around(body, copy.deepcopy(inside)).double(), torch.randn(4, 4, 6, dtype=torch.float64)
    tangent = torch.tensor(-1.7, dtype=torch.float64)
    model = stretto.compile(copy.deepcopy(plain), plan=PLANS[plan])
    expected, loss = plain(x), model(x)
    expected.backward(tangent)
    loss.backward(tangent)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    for (parameter, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=lambda m, p=parameter: f"{p}: {m}"
            )
    assert check(stretto.program_of(model)).passed


class Copied(nn.Module):
    """A clone that asks for a memory format, without which the view after it is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        turned = self.inp(x).transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return turned.view(4, 24).pow(2).mean()


def test_a_reference_keeps_the_memory_formats_that_views_depend_on() -> None:
    model = stretto.compile(Copied().double(), plan="mesh (dp=2)")
    model(torch.randn(4, 4, 6, dtype=torch.float64)).backward()
    assert check(stretto.program_of(model)).passed
