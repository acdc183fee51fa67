"""A captured graph as a module: what is kept, what disappears, what is refused."""

from __future__ import annotations

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import CaptureError, Mode
from stretto.frontend.to_ir import Floats, to_module
from stretto.ir.locations import from_location
from stretto.ir.module import Module, operations
from stretto.ir.operations import read
from torch import Tensor, nn


class _Views(nn.Module):
    """A few views and a copy that changes nothing, around one product."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.clone()).view(-1, 2, 3).to(torch.float32)
        return (y * 2 + torch.ones(3)).float()


class _Strided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.as_strided((2, 2), (1, 2))


class _Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * 2)


def _module(floats: Floats = Floats.AS_CAPTURED) -> Module:
    captured = capture(_Views(), (torch.randn(5, 4),), {}, mode=Mode.INFER)
    module = to_module(captured, {"inner.weight": "linear"}, floats=floats)
    module.verify()
    return module


def _names(module: Module) -> list[str]:
    calls = (read(op) for op in operations(module.functions()["main"]))
    return [call.name for call in calls if call is not None]


def test_views_become_reshapes_with_their_sizes_and_copies_without_effect_disappear() -> None:
    module = _module()
    calls = [read(op) for op in operations(module.functions()["main"])]
    shapes = [call.args[1] for call in calls if call is not None and call.name == "aten.reshape.default"]
    assert shapes == [[5, 2, 3]]
    assert not {"aten.clone.default", "aten._to_copy.default", "aten.view.default"} & set(_names(module))


def test_a_scalar_in_a_tensor_place_takes_the_scalar_overload() -> None:
    assert "aten.mul.Scalar" in _names(_module())


def test_every_operation_knows_its_module_and_line() -> None:
    module = _module()
    places = [from_location(op.location) for op in operations(module.functions()["main"]) if read(op) is not None]
    assert {place.module_path for place in places} == {"", "inner"}
    assert all(place.file.endswith("test_to_ir.py") and place.line > 0 for place in places)


def test_float64_raises_types_and_constants() -> None:
    text = str(_module(Floats.FLOAT64))
    assert "f32" not in text
    assert "f64" in text


def test_print_and_parse_give_the_same_text() -> None:
    text = _module().text()
    assert Module.parse(text).text() == text


def test_an_op_that_depends_on_strides_is_refused_at_its_line() -> None:
    with pytest.raises(CaptureError, match="on the memory layout of its operand") as caught:
        capture(_Strided(), (torch.randn(4),), {}, mode=Mode.INFER)
    assert caught.value.code == "E0230"
    assert caught.value.span is not None and caught.value.span.file.endswith("test_to_ir.py")


def test_an_op_on_complex_numbers_that_is_not_compiled_is_refused_at_its_line() -> None:
    with pytest.raises(CaptureError, match="computes with complex numbers") as caught:
        capture(_Complex(), (torch.randn(4, 8),), {}, mode=Mode.INFER)
    assert caught.value.code == "E0502"
    assert caught.value.span is not None and "rfft" in caught.value.span.text
