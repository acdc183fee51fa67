"""The joint graph of many equal layers, of which a few are traced, is the one of the whole trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stretto.frontend.capture.distinct_layers as distinct_layers
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode
from stretto.frontend.to_ir import to_module
from stretto.ir.locations import from_location
from stretto.ir.module import operations
from torch import Tensor, nn

from ...passes.layers.stacks import SmallLayer, Stack
from ...subsets import only

LAYERS = 7


class Tail(Stack):
    """Layers whose values others than the next one take, or of which one differs."""

    def __init__(self, change: Callable[[Tail], None] | None = None, **options: Any) -> None:
        super().__init__(LAYERS, **options)
        if change is not None:
            change(self)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.enter(x)
        values = []
        for layer in self.layers:
            x = layer(x, memory)
            values.append(x)
        return x.square().mean() + torch.stack(values).mean()


class Counting(nn.Module):
    """A layer that counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.norm(self.linear(x)) + memory


class Frozen(Stack):
    """Layers that train their norms alone, on an input that requires no gradient."""

    def __init__(self) -> None:
        super().__init__(LAYERS)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("norm" in name)


class Buffered(nn.Module):
    """A layer with a mask of its own, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.unread = nn.Linear(8, 8), nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.ones(8))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return x + (self.linear(x) * self.mask).tanh() + memory


def of(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = Stack(0)
        model.layers.extend(layer() for _ in range(LAYERS))
        return model

    return made


def tied() -> nn.Module:
    model = of(lambda: SmallLayer(8))()
    model.layers[2].up.weight = model.layers[4].up.weight
    return model


def one_wider() -> nn.Module:
    model = Stack(2 * LAYERS)
    model.layers[4].block.up, model.layers[4].block.down = nn.Linear(8, 16), nn.Linear(16, 8)
    return model


GROWN: dict[str, Callable[[], nn.Module]] = {
    "small layers": of(lambda: SmallLayer(8)),
    "buffers and unread parameters": of(Buffered),
    "dropout and attention": lambda: Stack(LAYERS, drop=0.5),
    "a parameter of all layers": lambda: Stack(LAYERS, shares=True),
    "frozen parameters": Frozen,
    "one layer is wider": one_wider,
}
WHOLE: dict[str, Callable[[], nn.Module]] = {
    "what all layers give is read": Tail,
    "buffers change": of(Counting),
    "two layers share a parameter": tied,
    "three layers": lambda: Stack(3),
}

SAYS = dict.fromkeys(
    ("what all layers give is read", "buffers change", "two layers share a parameter"),
    f'forward and backward of each of the {LAYERS} layers "layers" are traced: no 4 of them in a row',
)


def captured(model: nn.Module, mode: Mode, **options: Any) -> Capture:
    return capture(model, (torch.zeros(4, 3, 8),), {}, mode=mode, loss_only=mode is Mode.TRAIN, **options)


def described(step: Capture) -> tuple[str, list[str], Any]:
    module = to_module(step)
    places = [str(from_location(op.location)) for op in operations(module.functions()["main"])]
    return str(module), places, (step.inputs, step.outputs, step.unused_parameters, step.reference)


def traced_ops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nodes of each forward whose joint graph is traced from now on."""
    counts: list[int] = []
    original = distinct_layers.trace_joint

    def counting(module: nn.Module, traced: Any, mode: Mode) -> Any:
        counts.append(len(traced.graph.graph.find_nodes(op="get_attr")) + len(traced.graph.graph.nodes))
        return original(module, traced, mode)

    monkeypatch.setattr(distinct_layers, "trace_joint", counting)
    return counts


@pytest.mark.parametrize("name", only(["buffers and unread parameters"], GROWN))
@pytest.mark.parametrize("mode", only([Mode.TRAIN], Mode))
def test_a_grown_graph_is_that_of_the_whole_trace(name: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GROWN[name]()
    counts = traced_ops(monkeypatch)
    grown = captured(model, mode)
    monkeypatch.setattr(distinct_layers, "shortened", lambda forward, attribute: None)
    whole = captured(model, mode)
    assert described(grown) == described(whole)
    assert len(counts) == 2 and counts[0] < counts[1], "fewer layers were traced"
    assert not grown.traced_whole and whole.traced_whole


@pytest.mark.parametrize("name", only(["buffers change"], WHOLE))
def test_layers_that_are_no_run_are_traced_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = WHOLE[name]()
    counts = traced_ops(monkeypatch)
    first = captured(model, Mode.TRAIN)
    assert first.traced_whole.startswith(SAYS[name]) if name in SAYS else not first.traced_whole
    monkeypatch.setattr(distinct_layers, "shortened", lambda forward, attribute: None)
    assert described(first) == described(captured(model, Mode.TRAIN))
    assert counts[0] == counts[1]


def test_the_joint_trace_goes_by_distinct_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = traced_ops(monkeypatch)
    for layers in (4, 8, 16):
        model = Stack(0)
        model.layers.extend(SmallLayer(8) for _ in range(layers))
        captured(model, Mode.TRAIN)
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.slow
def test_layers_that_are_alike_in_the_forward_alone_are_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = traced_ops(monkeypatch)
    model = of(lambda: SmallLayer(8))()
    monkeypatch.setattr(distinct_layers, "grow", lambda joint, run, attribute: False)
    first = captured(model, Mode.TRAIN)
    assert first.traced_whole.endswith("they are equal, but their gradients are not")
    monkeypatch.undo()
    assert len(counts) == 2 and described(first) == described(captured(model, Mode.TRAIN))
