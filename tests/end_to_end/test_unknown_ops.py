"""An unknown op is refused by name, or computed by every rank with a remark; never guessed at."""

from __future__ import annotations

import pytest
import torch
from stretto.diagnostics import StrettoError
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn

from .checking import assert_report, compiled_model

PLAN = 'mesh (dp=2, tp=2)\nshard "up" columns over tp'


@torch.library.custom_op("stretto_tests::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    """Rows in another order: no rule could be guessed from its schema."""
    return x.flip(0) * torch.arange(1, x.shape[0] + 1)[:, None]


@twist.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


twist.register_autograd(lambda ctx, grad: grad.flip(0))


class Uses(nn.Module):
    """A layer, and an op after it."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op
        self.up = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return (twist(y) if self.op == "twist" else torch.cdist(y, y.flip(0))).pow(2).mean()


def test_a_custom_op_is_refused_with_its_name_and_line() -> None:
    place = r"test_unknown_ops\.py:\d+:\d+"
    with pytest.raises(StrettoError, match=rf'{place}: error\[E0230\].*"stretto_tests.twist.default"') as caught:
        compiled_model(Uses("twist"), {"x": torch.zeros(4, 5)}, PLAN)
    assert 'stretto.allow_ops("stretto_tests::twist")' in caught.value.help


def test_an_op_of_torch_without_a_rule_is_computed_whole_by_every_rank_and_a_remark_says_so() -> None:
    torch.manual_seed(0)
    program = compiled_model(Uses("cdist"), {"x": torch.zeros(4, 5)}, PLAN).program
    messages = [str(remark["message"]) for remark in program.remarks]
    assert any('"aten._cdist_forward.default" has no sharding rule' in message for message in messages)
    assert_report(check(program))
