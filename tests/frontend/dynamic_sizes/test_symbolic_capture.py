"""A call that was captured with symbols is, at any sizes, what a capture of these sizes gives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from stretto.frontend.capture.call import BoundCall, bind_call
from stretto.frontend.capture.capture import capture_call
from stretto.frontend.captured import Capture, CaptureError, Mode, Origin
from stretto.frontend.dynamic_sizes.dynamic_dims import DynamicDims
from stretto.frontend.dynamic_sizes.size_guards import NotSymbolic
from stretto.frontend.dynamic_sizes.symbolic_capture import SymbolicCapture, forward_symbolically
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ...subsets import only

DIMS = {"x": {0: "batch", 1: "seq"}, "y": {0: "batch", 1: "seq"}}


class Model(nn.Module):
    """x (batch, seq, 8), y (batch, seq) -> the loss: attention, a table, sizes in numbers, slices of all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 5)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.steps += 1
        x = x[:, :, :] + self.table(torch.arange(x.shape[1]))
        q, k, v = self.qkv(x).view(*x.shape[:2], 2, 12).transpose(1, 2).chunk(3, -1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None, :, : x.shape[1]])
        logits = self.out(mixed.transpose(1, 2).reshape(*x.shape) / x.shape[1])
        return F.cross_entropy(logits.flatten(0, 1), y.reshape(-1)) + x.mean()


def call(model: nn.Module, batch: int, seq: int) -> BoundCall:
    return bind_call(model, (torch.ones(batch, seq, 8), torch.zeros(batch, seq, dtype=torch.int64)), {})


def sizes(batch: int, seq: int) -> dict[str, int]:
    return {"batch": batch, "seq": seq}


def symbolic(model: nn.Module, given: BoundCall, mode: Mode) -> SymbolicCapture:
    return forward_symbolically(model, given, DynamicDims.of(DIMS).in_call(given), mode=mode).finished()


def told(capture: Capture) -> list[Any]:
    """Ops with arguments, shapes and dtypes, and where they come from; nodes by position, without names for others."""
    index: dict[fx.Node, Any] = {}
    actual: list[Any] = []
    for node in capture.graph.graph.nodes:
        if node.target is torch.ops.aten.alias.default:
            index[node] = index[node.args[0]]
            continue
        index[node] = len(actual)
        origin = replace(node.meta.get("stretto") or Origin(), seq_nr=0)
        arguments = str(fx.map_arg((node.args, node.kwargs), index.__getitem__))
        actual.append((node.op, str(node.target), arguments, about(node.meta.get("val")), origin))
    return actual


def about(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else [about(item) for item in value or ()]


@cache
def captured(mode: Mode) -> tuple[Model, SymbolicCapture]:
    """The model, and one capture that serves all sizes."""
    model = Model()
    return model, symbolic(model, call(model, 4, 6), mode)


@pytest.mark.parametrize(
    ("mode", "at"),
    only([(Mode.TRAIN, (3, 10)), (Mode.TRAIN, (4, 6)), (Mode.INFER, (7, 5))], product(Mode, [(4, 6), (3, 10), (7, 5)])),
)
def test_a_symbolic_capture_at_given_sizes_equals_a_capture_of_these_sizes(mode: Mode, at: tuple[int, int]) -> None:
    model, actual = captured(mode)
    expected, capture = capture_call(model, call(model, *at), mode=mode), actual.at(sizes(*at))
    assert told(capture) == told(expected)
    assert expected.inputs == capture.inputs and expected.outputs == capture.outputs


def test_a_capture_at_some_sizes_does_not_change_the_next_one() -> None:
    model = Model()
    actual = symbolic(model, call(model, 4, 6), Mode.TRAIN)
    first = told(actual.at(sizes(3, 7)))
    actual.at(sizes(2, 5))
    assert told(actual.at(sizes(3, 7))) == first


def test_what_cannot_be_traced_with_symbols_says_so() -> None:
    class Counting(Model):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            return super().forward(x, y), x.shape[0]

    model = Counting()
    with pytest.raises(NotSymbolic, match="does not trace the model with symbols"):
        symbolic(model, call(model, 4, 6), Mode.TRAIN)


def test_a_forward_without_a_gradient_is_refused_as_in_any_capture() -> None:
    model = Model().requires_grad_(False)
    actual = symbolic(model, call(model, 4, 6), Mode.TRAIN)
    with pytest.raises(CaptureError) as error:
        actual.at(sizes(4, 6))
    assert error.value.code == "E0215"


class Averaged(torch.autograd.Function):
    """A mean over tokens whose backward is told their number, and doubles the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor) -> Tensor:
        ctx.tokens, ctx.labels = x.shape[1], labels
        return x.sum(1) / ctx.tokens

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return 2 * gradient.unsqueeze(1).expand(-1, ctx.tokens, -1) / ctx.tokens + ctx.labels.unsqueeze(-1), None


def test_a_custom_autograd_function_is_traced_with_symbols_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = Averaged.apply(self.linear(x), y)  # type: ignore[no-untyped-call]
            return result.sin().mean()

    model = Model()
    actual = symbolic(model, call(model, 4, 6), Mode.TRAIN)
    for at in ((4, 6), (3, 10)):
        expected, capture = capture_call(model, call(model, *at), mode=Mode.TRAIN), actual.at(sizes(*at))
        assert told(capture) == told(expected)
        assert capture.reference["functions"] == expected.reference["functions"]


def test_resampling_fixes_no_size() -> None:
    """Torch's own ops for it, which a trace without symbols has, take numbers."""
    model = nn.Upsample(scale_factor=2.0, mode="bilinear")
    given = bind_call(model, (torch.ones(2, 3, 4, 4),), {})
    dims = DynamicDims.of({"input": {0: "batch"}}).in_call(given)
    captured = forward_symbolically(model, given, dims, mode=Mode.INFER).finished()
    assert "batch == 2" not in captured.guards.conditions
    static = capture_call(model, given, mode=Mode.INFER)
    assert any("upsample_bilinear2d" in str(node.target) for node in static.graph.graph.nodes)
