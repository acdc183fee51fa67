"""A traced run keeps what the module computes, and nothing that comes of observing it."""

from __future__ import annotations

import pytest
import torch
from stretto.driver.debug.traced_module import TracedModule
from stretto.ir.equivalence.subvalues import Subvalues
from stretto.ir.interpreter import Floats, cutting, run
from torch import Tensor

from ...ir.interpreter.texts import module

TERM, SUM = 'tensor<4xf32, {tp = "partial(sum)"}>', "tensor<4xf32>"


def test_memory_that_observing_allocates_is_no_value_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of an earlier run, a wrong one too, may still lie there."""
    body = f'%0 = "comm.all_reduce"(%a) {{axes = ["tp"], reduce = "sum"}} : ({TERM}) -> {SUM} return %0 : {SUM}'
    reduced = module(f"%a: {TERM}", SUM, body, mesh=(("tp", 2),))
    traced = TracedModule(reduced, [torch.arange(4.0)])
    monkeypatch.setattr(cutting, "torch", _Torch(torch.full((4,), 7.0, dtype=torch.float64)))
    with Subvalues(traced.trace.keep_subvalue):
        run(reduced, [torch.arange(4.0)], floats=Floats.FLOAT64, observer=traced.trace)
    assert 7.0 not in [each.size for each in traced.trace.subvalues]


class _Torch:
    """torch, but memory without values holds what an earlier tensor left there."""

    def __init__(self, leftover: Tensor) -> None:
        self._leftover = leftover

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype).copy_(self._leftover)
