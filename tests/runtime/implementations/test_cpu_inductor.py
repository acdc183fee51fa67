"""Fused regions by Inductor: the graph of a body, what is declined, and what happens where torch cannot compile one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.report.bound_kinds import bound_kinds, fallbacks
from stretto.runtime.implementations import cpu_inductor, registry
from stretto.runtime.implementations.binding import bindings, kind_functions
from stretto.runtime.implementations.cpu_inductor import InductorRegion, graph_of
from stretto.runtime.implementations.registry import KindFunction
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Function, Kind, SlotType
from torch import Tensor, nn

from .kind_program import kind_program, step

S = Slot


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTERED", [])
    monkeypatch.setattr(registry, "_USED", {})
    yield


def region(rows: int) -> KindFunction:
    """y = x.T as rows + a constant row, and its largest value by row: an op that gives several, a factory, a view."""
    code = (
        step("aten.permute.default", S(0), [1, 0], out=(1,)),
        step("aten.view.default", S(1), [rows, 3], out=(2,)),  # of a value that is not contiguous: the body copies it
        step("aten.ones.default", [3], out=(3,)),
        step("aten.add.Tensor", S(2), S(3), out=(4,)),
        step("aten.max.dim", S(4), 1, out=(5, 6)),
    )
    body = Function(7, (0,), (4, 5), code, types=(2, 0, 0, 3, 0, 1, 4), kind=Kind("region", ("in0",), ("out0", "out1")))
    types = tuple(
        SlotType(dtype, shape)
        for dtype, shape in (
            ("float64", (rows, 3)), ("float64", (rows,)), ("float64", (3, rows)), ("float32", (3,)), ("int64", (rows,)),
        )
    )  # fmt: skip
    return kind_functions(replace(kind_program(), functions={"region": body}, types=types))["region"]


def expected(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.t() + 1.0
    return y, y.amax(1)


def equal(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return len(got) == len(wanted) and all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_the_graph_of_a_body_computes_what_the_body_does() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    assert equal(graph_of(region(5))(x), expected(x))


def test_small_regions_are_declined_and_a_remark_says_why() -> None:
    found = cpu_inductor.INDUCTOR
    assert found.build(region(5), "cpu") is None and found.build(region(1 << 19), "cpu") is not None
    stretto.use_implementations("inductor")
    program = regions_of_a_model()
    assert all(each.kernel is None for each in bindings(program, "cpu").values())
    reason = "declined by Inductor (it writes fewer than 1048576 elements)"
    assert any(f"of kind region run as their bodies, op by op: {reason}" in text for text in fallbacks(program))
    assert {each.kind for each in bound_kinds(program)} == {"region"}


def test_without_a_compiler_bodies_run_and_a_remark_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_inductor.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    large = region(1 << 19)
    assert cpu_inductor.INDUCTOR.build(large, "cpu") is None
    assert cpu_inductor.INDUCTOR.why_not is not None
    assert cpu_inductor.INDUCTOR.why_not(large, "cpu") == "there is no C++ compiler"


def test_a_region_that_torch_cannot_compile_runs_its_ops_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(body: Any, **_: Any) -> Any:
        def run(*inputs: Tensor) -> Any:
            raise torch._dynamo.exc.Unsupported("an op\nis not known\n\nmore")

        return run

    monkeypatch.setattr(torch, "compile", refuse)
    kernel, x = InductorRegion(region(5)), torch.randn(3, 5, dtype=torch.float64)
    with pytest.warns(UserWarning, match="region is not compiled, its ops run: an op is not known$"):
        assert equal(kernel(x), expected(x))
    assert equal(kernel(2 * x), expected(2 * x))


def test_results_that_share_memory_get_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def sharing(body: Any, **_: Any) -> Any:
        return lambda x: (x.add(1.0),) * 2

    monkeypatch.setattr(torch, "compile", sharing)
    first, second = InductorRegion(region(5))(torch.ones(2))
    first.zero_()
    assert second.tolist() == [2.0, 2.0]


class Gated(nn.Module):
    """A norm and a gate between two products."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        y = y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        a, b = y.chunk(2, -1)
        return self.down(nn.functional.silu(a) * b).square().mean()


def stepped(model: nn.Module, call: Any) -> tuple[Tensor, list[Tensor]]:
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(4, 6)
    loss = call(x)
    (3 * loss).backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def regions_of_a_model() -> Program:
    """The program of a model that is compiled now, for two ranks."""
    model = Gated().double()
    compiled: Any = stretto.compile(model, plan="mesh (dp=2)\n")
    stepped(model, compiled)
    return stretto.program_of(compiled)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # Inductor's own
def test_a_training_step_with_compiled_regions_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_inductor, "_LEAST_ELEMENTS", 0)
    called: list[str] = []
    call = InductorRegion.__call__
    monkeypatch.setattr(
        InductorRegion, "__call__", lambda self, *x: (called.append(self.function.name), call(self, *x))[1]
    )
    torch.manual_seed(0)
    plain = Gated().double()
    model = Gated().double()
    model.load_state_dict(plain.state_dict())
    stretto.use_implementations("inductor")
    loss, gradients = stepped(model, stretto.compile(model, plan="mesh (dp=2)\n"))
    wanted, wanted_gradients = stepped(plain, plain)
    assert len({*called}) >= 2
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-10, atol=1e-12)
