"""`stretto.allow_ops`: the caller adds custom ops, a folder never does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.ir.module import Module
from stretto.ops.allowed import allow_ops
from stretto.runtime.checks.program_check import check
from stretto.runtime.program.program import Program
from stretto.runtime.prover.prove import prove
from torch import Tensor, nn

PLAN = 'mesh (dp=2, tp=2)\nshard "up" columns over tp\nshard "down" rows over tp'


@torch.library.custom_op("stretto_allowed::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    """Rows in another order, each scaled: no rule could be guessed from its schema."""
    return x.flip(0) * torch.arange(1, x.shape[0] + 1)[:, None]


@twist.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _twist_backward(ctx: object, grad: Tensor) -> Tensor:
    return (grad * torch.arange(1, grad.shape[0] + 1)[:, None]).flip(0)


twist.register_autograd(_twist_backward)


@torch.library.custom_op("stretto_allowed::fill", mutates_args=("x",))
def fill(x: Tensor) -> None:
    """It writes to its argument."""
    x.fill_(1)


@torch.library.custom_op("stretto_allowed::untraced", mutates_args=())
def untraced(x: Tensor) -> Tensor:
    """It has no fake kernel."""
    return x.clone()


class Twisted(nn.Module):
    """A custom op between a layer cut by columns and one cut by rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(twist(self.up(x)))
        return y.pow(2).mean()


def test_an_allowed_op_trains_as_eager_does_is_kept_in_the_program_and_runs_between_collectives(tmp_path: Path) -> None:
    allow_ops("stretto_allowed::twist")
    plain, x = Twisted().double(), torch.randn(4, 4, dtype=torch.float64)
    model = stretto.compile(copy.deepcopy(plain), plan=PLAN)
    plain(x).backward(torch.tensor(0.3, dtype=torch.float64))
    model(x).backward(torch.tensor(0.3, dtype=torch.float64))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    program = stretto.program_of(model)
    assert any('"stretto_allowed.twist.default" has no sharding rule' in str(remark) for remark in program.remarks)
    program.save(tmp_path / "program")
    loaded = Program.load(tmp_path / "program")
    assert check(loaded).passed and prove(loaded).safe
    assert _outstanding_at(loaded, "stretto_allowed.twist.default") == 0
    assert "custom_stretto_allowed_twist_default.call" in Module.parse(loaded.ir).text()


def _outstanding_at(program: Program, op: str) -> int:
    """How many collectives run while the op does."""
    outstanding = 0
    for instruction in program.functions["main"].code:
        if instruction.op == op:
            return outstanding
        outstanding += instruction.op.endswith("_start")
        outstanding -= instruction.op == "comm.wait"
    raise AssertionError(f"no {op}")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("stretto_allowed::fill", "writes to an argument"),
        ("stretto_allowed::untraced", "no fake kernel"),
        ("stretto_allowed::nothing", "no registered op"),
        ("aten::*", "names no op of a library"),
        ("twist", "names no op of a library"),
    ],
)
def test_what_cannot_be_allowed_is_refused_with_its_reason(pattern: str, says: str) -> None:
    with pytest.raises(StrettoError, match=says) as caught:
        allow_ops(pattern)
    assert caught.value.code == "E0314"


def test_a_glob_allows_the_ops_that_can_be_allowed() -> None:
    from stretto.ops.allowed import allowed_op

    allow_ops("stretto_allowed::*")
    assert allowed_op("stretto_allowed.twist.default") is not None
    assert allowed_op("stretto_allowed.fill.default") is None
