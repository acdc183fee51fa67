"""Complex numbers, as rotary embeddings have them, are captured as pairs of reals with eager mode's gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import CaptureError, Mode, OutputKind
from torch import Tensor, nn

from ..running import run_graph

TOKENS = 5
Body = Callable[[Any, Tensor], Tensor]


class Written(nn.Module):
    """A linear, then `body(model, x)` on (batch, TOKENS, 8), which returns a real tensor."""

    turns: Tensor
    frequencies: Tensor

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.linear, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(8))
        angles = torch.outer(torch.arange(float(TOKENS)), torch.rand(4))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)
        self.register_buffer("frequencies", torch.rand(4))
        self.table = torch.polar(torch.rand(2 * TOKENS, 4) + 0.5, torch.rand(2 * TOKENS, 4))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(self, self.linear(x)).flatten(1) * torch.arange(1.0, TOKENS * 8 + 1)).sin().mean()


def z_of(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (4, 2)))


def reals(z: Tensor) -> Tensor:
    return torch.view_as_real(z).flatten(-2)


def deepseek(model: Written, x: Tensor) -> Tensor:
    """As DeepSeek-V2 and Llama 4 turn queries: frequencies by positions, scaled, broadcast over heads."""
    positions = torch.arange(x.shape[1])[None, :].to(x.dtype)
    angles = (model.frequencies[None, :, None].expand(x.shape[0], -1, 1) @ positions[:, None, :]).transpose(1, 2)
    turns = torch.polar(torch.ones_like(angles), angles) * 1.25
    heads = torch.view_as_complex(x.view(*x.shape[:2], 2, 4).reshape(*x.shape[:2], 2, -1, 2))
    return torch.view_as_real(heads * turns[:, :, None, :2]).flatten(3).type_as(x)


def half_precision(model: Written, x: Tensor) -> Tensor:
    z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * model.turns.to(torch.complex64)).flatten(-2).type_as(x)


BODIES: dict[str, Body] = {
    "a buffer": lambda m, x: reals(z_of(x) * m.turns),
    "a slice of a constant": lambda m, x: reals(z_of(x) * m.table[2 : 2 + x.shape[1]].unsqueeze(0)),
    "a lookup in a constant": lambda m, x: reals(z_of(x) * m.table[torch.tensor([1, 0, 7, 3, 3])]),
    "DeepSeek-V2 and Llama 4": deepseek,
    "another dtype": half_precision,
    "learned angles": lambda m, x: reals(z_of(x) * torch.polar(torch.ones(4, dtype=x.dtype), m.weight[:4])),
    "learned lengths": lambda m, x: reals(torch.polar(m.weight.square()[:4] + 1, m.frequencies) * z_of(x)),
    "conjugates": lambda m, x: reals(z_of(x).conj() * m.turns.conj()),
    "squares": lambda m, x: reals(z_of(x) * z_of(x)),
    "scaled and negated": lambda m, x: reals(-(2.5 * z_of(x)) / 3 * m.weight[:4]),
    "sums": lambda m, x: reals(z_of(x) + m.turns + 0.5 - z_of(x * 2) + x[..., :4]),
    "made of two": lambda m, x: reals(torch.complex(x[..., :4], x[..., 4:]) * m.turns),
    "real and imaginary parts": lambda m, x: torch.cat([(z_of(x) * m.turns).real, (z_of(x) * m.turns).imag], -1),
    "quotients": lambda m, x: reals(z_of(x) / (m.turns + 2) / z_of(x + 9)),
    "lengths": lambda m, x: x + (z_of(x) * m.turns).abs().repeat(1, 1, 2),
    "exponentials": lambda m, x: reals((z_of(x) * m.turns).exp()),
    "joined and split": lambda m, x: reals(torch.cat([*(z_of(x) * m.turns).split(1, -1)][::-1], -1)),
    "sums over tokens": lambda m, x: x + reals((z_of(x) * m.turns).sum(1, keepdim=True)),
    "permuted": lambda m, x: reals((z_of(x).transpose(1, 2) * m.turns.t()).permute(0, 2, 1).contiguous()),
}


@pytest.mark.parametrize("name", BODIES)
def test_pairs_have_the_values_and_gradients_of_complex_numbers(name: str) -> None:
    torch.manual_seed(0)
    model, x = Written(BODIES[name]).double(), torch.randn(3, TOKENS, 8, dtype=torch.float64)
    model.turns, model.table = model.turns.to(torch.complex128), model.table.to(torch.complex128)
    loss = model(x)
    (loss * 2.5).backward()
    captured = capture(model, (x,), {}, mode=Mode.TRAIN)
    found = run_graph(captured, model, [x], {0: torch.tensor(2.5, dtype=torch.float64)})
    close = {"rtol": 1e-4, "atol": 1e-7} if name == "another dtype" else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found[OutputKind.OUTPUT, 0], loss.detach(), **close)
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[OutputKind.GRADIENT, key], parameter.grad, **close)
    complex_ones = [node for node in captured.graph.graph.nodes if _is_complex(node.meta.get("val"))]
    assert {node.op for node in complex_ones} <= {"placeholder"}


def _is_complex(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (lambda m, x: x + torch.fft.rfft(x).real.sum(), "torch.fft.rfft"),
        (lambda m, x: reals(z_of(x).log()), "z_of(x).log()"),
        (lambda m, x: x + z_of(x).angle().sum(), "z_of(x).angle()"),
        (lambda m, x: reals(z_of(x).cumsum(1).sqrt()), "z_of(x).cumsum(1).sqrt()"),
    ],
)
def test_another_op_on_complex_numbers_is_refused_at_its_line(body: Body, line: str) -> None:
    with pytest.raises(CaptureError, match="computes with complex numbers") as caught:
        capture(Written(body), (torch.randn(3, TOKENS, 8),), {}, mode=Mode.INFER)
    assert caught.value.code == "E0502" and caught.value.help
    assert caught.value.span is not None and line in caught.value.span.text
    assert caught.value.span.line == inspect.getsourcelines(body)[1]


def test_a_complex_result_is_refused() -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return z_of(x) * 2

    with pytest.raises(CaptureError, match="a complex tensor leaves the model") as caught:
        capture(Returns(), (torch.randn(3, TOKENS, 8),), {}, mode=Mode.INFER)
    assert caught.value.code == "E0502"
    assert caught.value.span is not None and "z_of(x) * 2" in caught.value.span.text
