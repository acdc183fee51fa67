"""An idiom for which the caller registers an implementation stays whole in what is compiled, and the kernel runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import stretto
import torch
from stretto.driver.check.stated_kinds import wrong_kind
from stretto.driver.compile.whole_idioms import kept_kinds
from stretto.runtime.implementations import registry
from stretto.runtime.implementations.registry import KindFunction
from stretto.runtime.prover import prove
from torch import Tensor, nn

ALWAYS = ("attention", "attention_backward")


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTERED", [])
    yield


class Net(nn.Module):
    """A norm without a bias between two products."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(8, bias=False), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x))).square().mean()


def test_norms_are_functions_where_the_caller_has_a_kernel_for_them() -> None:
    taken: list[str] = []

    def build(function: KindFunction, target: str) -> Callable[..., tuple[Tensor, ...]]:
        shape, eps = function.kind.attributes["shape"], function.kind.attributes["eps"]

        def kernel(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            taken.append(function.name)
            return torch.native_layer_norm(x, shape, weight, None, eps)  # type: ignore[arg-type]

        return kernel

    assert kept_kinds() == ALWAYS
    for kinds in (("layer_norm",), ("layer_norm_backward", "something_else")):
        decline = kinds != ("layer_norm",)
        stretto.register_implementation(
            stretto.Implementation("ours", kinds, ("cpu",), (lambda f, t: None) if decline else build)
        )
    assert kept_kinds() == (*ALWAYS, "layer_norm", "layer_norm_backward")
    model = Net()
    eager = deepcopy(model)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    compiled = stretto.compile(model, plan=stretto.Plan.parse("mesh (dp=2)"))
    loss, expected = compiled(x), eager(x)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    program = stretto.program_of(compiled)
    assert program.kinds == ("layer_norm", "layer_norm_backward")
    backward = next(f.kind for f in program.functions.values() if f.kind and f.kind.name == "layer_norm_backward")
    assert backward.results == ("grad_x", "grad_weight")
    assert len(taken) == 2, "one call on each rank"
    assert wrong_kind(program) == "" and prove(program).safe
