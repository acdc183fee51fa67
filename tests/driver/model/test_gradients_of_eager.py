"""Ops that draw, round, sort, count or compare get the gradient that eager mode gives: its values, zeros, or None."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import stretto
import torch
from stretto.frontend.captured import CaptureError
from torch import Tensor, nn
from torch.nn import functional as F

from ...subsets import only

PLAN = "mesh (dp=2)\nshard inputs batch over dp\n"
TANGENT = 2.0
Op = Callable[[Tensor], Tensor]

DRAWS: dict[str, Op] = {
    "normal with a mean": lambda t: torch.normal(t, 0.1),
    "normal with a deviation": lambda t: torch.normal(0.0, t.abs()),
    "normal with both": lambda t: torch.normal(t, t.abs()),
    "normal with a mean that broadcasts": lambda t: torch.normal(t[0, 0], t.detach().abs()),
    "normal with a float32 mean": lambda t: torch.normal(t.float(), 0.1).double(),
    "normal_": lambda t: t.clone().normal_(),
    "uniform_": lambda t: t.clone().uniform_(),
    "exponential_": lambda t: t.clone().exponential_(),
    "bernoulli": lambda t: torch.bernoulli(t.sigmoid()),
    "bernoulli of a tensor that was written": lambda t: torch.bernoulli(torch.zeros_like(t).copy_(t.sigmoid())),
    "bernoulli_": lambda t: t.clone().bernoulli_(0.3),
    "bernoulli_ with probabilities": lambda t: torch.empty_like(t).bernoulli_(t.sigmoid()),
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint_like": lambda t: torch.randint_like(t, 5),
    "dropout of everything": lambda t: F.dropout(t, 1.0),
}
ROUNDS: dict[str, Op] = {
    "round": torch.round,
    "round to decimals": lambda t: torch.round(t, decimals=1),
    "round_": lambda t: t.clone().round_(),
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "frac": torch.frac,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "division that floors": lambda t: torch.div(t, 0.3, rounding_mode="floor"),
    "division that truncates": lambda t: torch.div(t, 0.3, rounding_mode="trunc"),
    "remainder": lambda t: t % 0.3,
    "remainder by": lambda t: torch.remainder(t.detach() * 3, t.abs() + 0.3),
    "fmod by": lambda t: torch.fmod(t.detach() * 3, t.abs() + 0.3),
    "to integers": lambda t: (t * 10).long().double(),
    "straight through": lambda t: t + (t.round() - t).detach(),
    "fake quantization": lambda t: torch.fake_quantize_per_tensor_affine(t, 0.1, 0, -3, 3),
}
SORTS: dict[str, Op] = {
    "argmax": lambda t: t.argmax(1).double(),
    "argsort": lambda t: t.argsort(1).double(),
    "sort": lambda t: t.sort(1).values,
    "indices of sort": lambda t: t.sort(1, descending=True).indices.double(),
    "sort of ties": lambda t: t.sign().sort(1).values + t.mul(0).sort(1).values,
    "topk": lambda t: t.topk(2, 1).values,
    "topk of ties": lambda t: t.mul(0).topk(2, 1).values,
    "kthvalue": lambda t: t.kthvalue(2, 1).values,
    "median of all": lambda t: t.median(),
    "median of rows": lambda t: t.median(1).values,
    "median of ties": lambda t: t.mul(0).median(),
    "nanmedian": lambda t: t.nanmedian(),
    "mode": lambda t: t.mode(1).values,
    "quantile": lambda t: t.quantile(0.4, 1),
    "max of rows": lambda t: t.max(1).values,
    "amax of ties": lambda t: t.mul(0).amax(1),
    "min of all ties": lambda t: t.mul(0).min(),
    "cummax": lambda t: t.cummax(1).values,
}
COMPARISONS: dict[str, Op] = {
    "greater": lambda t: (t > 0).double(),
    "isclose": lambda t: t.isclose(t).double(),
    "signbit": lambda t: t.signbit().double(),
    "logical_not": lambda t: torch.logical_not(t).double(),
    "any": lambda t: (t > 0).any(1).double(),
    "where": lambda t: torch.where(t > 0, t, 0.0),
    "maximum of ties": lambda t: torch.maximum(t, t * 1),
    "copysign": lambda t: torch.copysign(t, -t.detach()),
    "copysign of the sign": lambda t: torch.copysign(t.detach(), t),
    "clamp at its bound": lambda t: t.mul(0).clamp(0, 1),
    "relu at 0": lambda t: t.mul(0).relu(),
    "bucketize": lambda t: torch.bucketize(t, torch.tensor([0.0, 0.5], dtype=t.dtype)).double(),
    "searchsorted": lambda t: torch.searchsorted(torch.tensor([0.0, 0.5], dtype=t.dtype), t).double(),
}
COUNTS: dict[str, Op] = {
    "histc": lambda t: torch.histc(t, 4, -1.0, 1.0),
    "count_nonzero": lambda t: t.count_nonzero(1).double(),
    "nonzero_static": lambda t: torch.nonzero_static(t, size=3).double(),
    "one_hot": lambda t: F.one_hot(t.argmax(1), 3).double(),
    "cumsum of a comparison": lambda t: (t > 0).cumsum(1).double(),
}


def _doubled_in_place(t: Tensor) -> Tensor:
    with torch.no_grad():
        t.mul_(2.0)
    return t


CONSTANTS: dict[str, Op] = {
    "detach": lambda t: t.detach(),
    "fill_": lambda t: t.clone().fill_(2.0),
    "zeros_like": torch.zeros_like,
}
ALL = {**DRAWS, **ROUNDS, **SORTS, **COMPARISONS, **COUNTS, **CONSTANTS}

REFUSED: dict[str, tuple[Op, str]] = {
    "poisson": (lambda t: torch.poisson(t.abs()), "E0217"),
    "multinomial": (lambda t: torch.multinomial(t.abs() + 0.1, 1).double(), "E0217"),
    "cauchy_": (lambda t: t.clone().cauchy_(), "E0217"),
    "log_normal_": (lambda t: t.clone().log_normal_(), "E0217"),
    "geometric_": (lambda t: t.clone().geometric_(0.3), "E0217"),
    "rrelu": (lambda t: F.rrelu(t, training=True), "E0217"),
    "unique": (lambda t: torch.unique(t), "E0221"),
    "bincount": (lambda t: torch.bincount(t.long().abs().flatten()).double(), "E0221"),
    "floor_divide": (lambda t: t // 0.3, "E0224"),
    "heaviside": (lambda t: torch.heaviside(t, t.detach()), "E0224"),
    "mul_ of what tanh needs": (lambda t: _doubled_in_place(t.tanh()), "E0224"),
    "histogram": (lambda t: torch.histogram(t, 4, range=(-1.0, 1.0)).hist, "E0224"),
}
"""Ops that cannot be compiled, or that eager mode cannot differentiate either, and the code that says so."""


class Step(nn.Module):
    """A loss of an op's result; `other` gives the loss another parameter that does not go through the op."""

    def __init__(self, op: Op, *, other: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, -0.7, 0.9], dtype=torch.float64))
        self.other = nn.Parameter(torch.full((3,), 0.4, dtype=torch.float64)) if other else None
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        result = self.op(x * self.scale)
        loss = (result * torch.arange(1, result.numel() + 1).view(result.shape)).sum()
        return loss if self.other is None else loss + (x * self.other).pow(2).sum()


def batch() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradients(model: nn.Module) -> list[Tensor | None]:
    """The gradients of a step; none where its loss requires none."""
    loss = model(batch())
    if not loss.requires_grad:
        return []
    loss.backward(torch.full_like(loss, TANGENT))
    return [parameter.grad for parameter in model.parameters()]


ALONE = tuple(name for kind in (DRAWS, ROUNDS, SORTS, COMPARISONS, COUNTS, CONSTANTS) for name in [*kind][::4])
"""Ops that the default run also takes as all that the loss depends on."""


@pytest.mark.parametrize(
    ("name", "other"),
    only([*product(ALL, [True]), *product(ALONE, [False])], product(ALL, [True, False])),
    ids=[f"{name}-{how}" for name, how in product(ALL, ["beside another parameter", "alone"])],
)
def test_an_op_gets_the_gradient_of_eager_mode(name: str, other: bool) -> None:
    expected = gradients(Step(ALL[name], other=other))
    actual = gradients(stretto.compile(Step(ALL[name], other=other), plan=PLAN))
    assert [gradient is None for gradient in actual] == [gradient is None for gradient in expected]
    for mine, eagers in zip(actual, expected, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, eagers, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", REFUSED)
def test_an_op_that_cannot_be_differentiated_as_in_eager_mode_is_refused_at_its_line(name: str) -> None:
    op, code = REFUSED[name]
    with pytest.raises(CaptureError) as caught:
        stretto.compile(Step(op, other=True), plan=PLAN)(batch())
    assert caught.value.code == code
    assert caught.value.span is not None and caught.value.span.file == __file__ and caught.value.help
