"""A parameter or a buffer that the forward finds in another object than its module is the module's."""

from __future__ import annotations

from dataclasses import dataclass

import stretto
import torch
from torch import Tensor, nn

PLAN = 'mesh (tp=2)\nshard "weight" dim 1 over tp\nshard buffers "rows" dim 1 over tp'


@dataclass
class Rows:
    """Plain Python, as the layer of a cache."""

    rows: Tensor
    length: Tensor

    def update(self, row: Tensor) -> Tensor:
        at = torch.arange(len(row)) + self.length
        self.length.add_(len(row))
        self.rows.index_copy_(0, at, row)
        return self.rows


class Writer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4))
        self.register_buffer("rows", torch.zeros(6, 4, dtype=torch.float64))
        self.register_buffer("length", torch.tensor(0))
        self.layers = {"first": (Rows(self.rows, self.length), [self.weight])}
        """Objects, tuples, lists and dicts, each inside of another."""

    def forward(self, x: Tensor) -> Tensor:
        held, (weight,) = self.layers["first"]
        rows = held.update((x @ weight).detach())
        return (x @ weight).pow(2).sum() * rows.sum()


def test_buffers_held_by_an_object_are_written_and_a_parameter_in_a_list_gets_its_gradient() -> None:
    eager, model = Writer(), Writer()
    compiled = stretto.compile(model, plan=PLAN)
    torch.manual_seed(0)
    for step in range(3):
        x = torch.randn(2, 4, dtype=torch.float64)
        for each in (eager, compiled):
            each.zero_grad()
            (3.0 * each(x)).backward()
        torch.testing.assert_close(compiled.weight.grad, eager.weight.grad, rtol=0, atol=1e-9)
        torch.testing.assert_close(compiled.rows, eager.rows, rtol=0, atol=1e-9)
        assert compiled.length == 2 * (step + 1)


def test_a_forward_that_returns_such_a_buffer_returns_its_value() -> None:
    class Returner(Writer):
        def forward(self, x: Tensor) -> Tensor:
            self.layers["first"][0].update(x)
            return self.layers["first"][0].rows

    eager, compiled = Returner(), stretto.compile(Returner(), plan=PLAN, states=["rows", "length"])
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(2, 4, dtype=torch.float64)
            torch.testing.assert_close(compiled(x), eager(x))
    assert compiled(x) is not compiled.rows
