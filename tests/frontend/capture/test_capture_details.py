"""Buffers, constants, frozen and unused parameters, gradient-free regions, calls and results of many shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stretto.frontend.capture.call import bind_call
from stretto.frontend.capture.capture import capture, capture_forward
from stretto.frontend.captured import Capture, CaptureError, InputKind, Mode, OutputKind, origin_of
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from ..running import largest_error, randomize, run_graph, run_reference


class Mixed(nn.Module):
    """Batch norm (buffers that change), a frozen and an unused parameter, a constant, a region without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.unused = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.shift = torch.tensor([0.5, -1.0, 2.0, 0.25])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.first(x)) + torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.shift
        with torch.no_grad():
            scale = hidden.abs().mean() * self.first.weight.abs().mean()
        return (self.norm(hidden) * self.frozen * scale).pow(2).sum()


MixedCapture = tuple[Mixed, torch.Tensor, Capture]


@pytest.fixture(scope="module")
def mixed() -> MixedCapture:
    torch.manual_seed(0)
    model = Mixed()
    randomize(model)
    x = torch.randn(8, 4)
    return model, x, capture(model, (x,), {}, mode=Mode.TRAIN)


def kinds(captured: Capture, kind: InputKind) -> list[str]:
    return [item.name for item in captured.inputs if item.kind is kind]


def gradients(captured: Capture) -> list[str]:
    return [item.name for item in captured.outputs if item.kind is OutputKind.GRADIENT]


def test_frozen_parameters_have_no_gradient_and_unused_ones_are_named(mixed: MixedCapture) -> None:
    _, _, captured = mixed
    assert captured.unused_parameters == ("unused.weight", "unused.bias")
    assert gradients(captured) == ["first.weight", "first.bias", "norm.weight", "norm.bias"]
    assert not next(item for item in captured.inputs if item.name == "frozen").requires_grad


def test_a_module_under_two_names_has_one_gradient(mixed: MixedCapture) -> None:
    _, _, captured = mixed
    first = next(item for item in captured.inputs if item.name == "first.weight")
    assert first.aliases == ("first.weight", "second.weight")


def test_buffers_constants_and_gradient_free_regions_match_eager(mixed: MixedCapture) -> None:
    model, x, captured = mixed
    actual = run_graph(captured, model, [x])
    eager = Mixed()
    eager.load_state_dict(model.state_dict())
    loss = eager(x)
    loss.backward()
    assert largest_error(actual[OutputKind.OUTPUT, 0], loss) < 1e-6
    for name in gradients(captured):
        gradient = dict(eager.named_parameters())[name].grad
        assert gradient is not None and largest_error(actual[OutputKind.GRADIENT, name], gradient) < 1e-5
    for name, buffer in eager.named_buffers():
        assert largest_error(actual[OutputKind.BUFFER, name].double(), buffer.double()) < 1e-6


def test_the_reference_updates_buffers_and_cuts_the_same_gradients(mixed: MixedCapture) -> None:
    model, x, captured = mixed
    actual = run_graph(captured, model, [x])
    parameters = {
        name: value.detach().clone().requires_grad_(value.requires_grad) for name, value in model.named_parameters()
    }
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    loss, *updated = run_reference(captured.reference, {**parameters, **buffers, **captured.constants}, [x])
    loss.backward()
    for name in gradients(captured):
        gradient = parameters[name].grad
        assert gradient is not None and largest_error(actual[OutputKind.GRADIENT, name], gradient) < 1e-5
    named = [item["name"] for item in captured.reference["outputs"] if item["kind"] == "buffer"]
    assert named == [name for name, _ in model.named_buffers()]
    for name, value in zip(named, updated, strict=True):
        assert largest_error(actual[OutputKind.BUFFER, name].double(), value.double()) < 1e-6


def test_constants_keep_their_values_and_the_models_names(mixed: MixedCapture) -> None:
    model, _, captured = mixed
    assert set(kinds(captured, InputKind.CONSTANT)) == set(captured.constants)
    assert torch.equal(captured.constants["shift"], model.shift)
    assert any(torch.equal(value, torch.tensor([1.0, 2.0, 3.0, 4.0])) for value in captured.constants.values())


def test_nodes_of_a_gradient_free_region_keep_their_lines(mixed: MixedCapture) -> None:
    _, _, captured = mixed
    lines = [origin_of(node) for node in captured.graph.graph.nodes if node.target is torch.ops.aten.abs.default]
    assert len(lines) == 2
    assert all(origin.file == __file__ and origin.line > 0 for origin in lines)


def test_capture_leaves_the_model_as_it_was() -> None:
    model = Mixed()
    model.unused.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, (torch.randn(8, 4),), {}, mode=Mode.TRAIN)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training and model.norm.training and not model.unused.training
    assert isinstance(model.shift, torch.Tensor) and "shift" not in dict(model.named_buffers())


def test_a_buffer_updated_without_gradients_is_an_output() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("average", torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.linear(x)
            with torch.no_grad():
                self.average.mul_(0.9).add_(hidden.mean(0))
                with torch.enable_grad():
                    again = self.linear(hidden)
            return (again * self.average).sum()

    model, x = Averaging(), torch.randn(3, 4)
    captured = capture(model, (x,), {}, mode=Mode.TRAIN)
    actual = run_graph(captured, model, [x])
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    parameters = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    model(x).backward()
    loss, average = run_reference(captured.reference, {**parameters, **buffers}, [x])
    loss.backward()
    for value in (actual[OutputKind.BUFFER, "average"], average):
        assert largest_error(value, model.average) < 1e-6
    for name, parameter in model.named_parameters():
        reference = parameters[name].grad
        assert parameter.grad is not None and reference is not None
        assert largest_error(actual[OutputKind.GRADIENT, name], parameter.grad) < 1e-5
        assert largest_error(reference, parameter.grad) < 1e-5


class Calling(nn.Module):
    """A forward with every kind of parameter, nested arguments and a nested result."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor, pair: Any, *, scale: float = 2.0, flag: bool = False, **extra: Any) -> Any:
        hidden = x * self.weight * scale + pair[0] - pair[1]["deep"]
        if flag:
            hidden = hidden + extra["bias"]
        return {"hidden": hidden, "parts": [hidden[:, :1], x], "note": "text", "again": hidden}


def test_arguments_are_bound_by_name_and_plain_values_become_constants() -> None:
    model = Calling()
    x, a, b, bias = (torch.randn(2, 3) for _ in range(4))
    captured = capture(model, (x, [a, {"deep": b}]), {"flag": True, "bias": bias, "scale": 3.0}, mode=Mode.TRAIN)
    assert kinds(captured, InputKind.INPUT) == ["x", "pair[0]", "pair[1]['deep']", "bias"]
    actual = run_graph(captured, model, [x, a, b, bias], {0: torch.randn(2, 3), 1: torch.randn(2, 1)})
    expected = model(x, [a, {"deep": b}], flag=True, bias=bias, scale=3.0)
    outputs = [actual[OutputKind.OUTPUT, index] for index in range(3)]
    rebuilt = captured.result.output_tree.rebuild(outputs)
    assert rebuilt["note"] == "text" and rebuilt["again"] is rebuilt["hidden"]
    assert torch.equal(rebuilt["parts"][0], expected["parts"][0]) and torch.equal(rebuilt["parts"][1], x)
    assert [item.name for item in captured.outputs[:3]] == ["hidden", "parts[0]", "parts[1]"]


def test_without_a_scalar_every_floating_output_has_a_tangent() -> None:
    model = Calling()
    x, a, b = (torch.randn(2, 3) for _ in range(3))
    captured = capture(model, (x, [a, {"deep": b}]), {}, mode=Mode.TRAIN)
    assert captured.differentiable == (0, 1)
    tangents = {0: torch.randn(2, 3), 1: torch.randn(2, 1)}
    actual = run_graph(captured, model, [x, a, b], tangents)
    result = model(x, [a, {"deep": b}])
    torch.autograd.backward([result["hidden"], result["parts"][0]], [tangents[0], tangents[1]])
    assert model.weight.grad is not None
    assert largest_error(actual[OutputKind.GRADIENT, "weight"], model.weight.grad) < 1e-6


def test_calls_by_position_and_by_name_have_one_structure() -> None:
    model = Calling()
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    first = bind_call(model, (x, [x, {"deep": y}]), {"scale": 3.0})
    second = bind_call(model, (), {"scale": 3.0, "pair": [y, {"deep": x}], "x": y})
    assert first.structure == second.structure
    assert first.structure != bind_call(model, (x, [x, {"deep": y}]), {"scale": 4.0}).structure


def test_one_tensor_passed_twice_is_two_inputs() -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return ((x - 2 * y) * self.weight).sum()

    model, x = Difference(), torch.randn(4, 3)
    captured = capture(model, (x, x), {}, mode=Mode.TRAIN)
    y = torch.randn(4, 3)
    assert largest_error(run_graph(captured, model, [x, y])[OutputKind.OUTPUT, 0], model(x, y)) < 1e-6


def test_inputs_may_be_strided_and_their_values_are_not_kept() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    x = torch.randn(3, 5).t()
    captured = capture(model, (x,), {}, mode=Mode.INFER)
    other = torch.randn(5, 3)
    assert largest_error(run_graph(captured, model, [other])[OutputKind.OUTPUT, 0], model(other)) < 1e-6


def test_a_model_of_fake_tensors_is_captured_without_memory() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = nn.Sequential(nn.Linear(1 << 17, 1 << 17), nn.Linear(1 << 17, 4))
    captured = capture(model, (torch.empty(2, 1 << 17),), {}, mode=Mode.TRAIN)
    assert gradients(captured) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert captured.inputs[0].shape == (1 << 17, 1 << 17)


class Checkpointed(nn.Module):
    """A loss behind a linear layer and a checkpointed block."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        result: torch.Tensor = x + checkpoint(self.body, x, use_reentrant=self.reentrant)
        return result.pow(2).sum()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_has_the_gradients_of_the_plain_one(reentrant: bool) -> None:
    model, x = Checkpointed(reentrant=reentrant).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    captured = capture(model, (x,), {}, mode=Mode.TRAIN)
    actual = run_graph(captured, model, [x], {0: torch.tensor(3.0, dtype=torch.float64)})
    (3 * model(x)).backward()
    for name, gradient in ((name, p.grad) for name, p in (*model.named_parameters(), ("x", x))):
        assert gradient is not None
        assert largest_error(actual[OutputKind.GRADIENT, name], gradient) < 1e-12


def test_a_reentrant_checkpoint_whose_parameters_would_get_no_gradient_is_refused() -> None:
    model = Checkpointed(reentrant=True)
    model.first.requires_grad_(False)
    with pytest.raises(CaptureError, match="E0227") as caught:
        capture(model, (torch.randn(4, 3),), {}, mode=Mode.TRAIN)
    assert "use_reentrant=False" in caught.value.help
    assert caught.value.span is not None and "checkpoint(self.body" in caught.value.span.text
    model.body.requires_grad_(False)
    model.last = nn.Linear(1, 1)  # not called
    assert capture(model, (torch.randn(4, 3),), {}, mode=Mode.INFER).outputs


def test_a_forward_is_traced_without_code_for_graphs_that_nothing_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[fx.Graph] = []
    generate, recompile, lint = fx.Graph.python_code, fx.GraphModule.recompile, fx.Graph.lint

    def counting(graph: fx.Graph, *args: Any, **options: Any) -> Any:
        codes.append(graph)
        return generate(graph, *args, **options)

    monkeypatch.setattr(fx.Graph, "python_code", counting)
    model, rows = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3)
    forward = capture_forward(model, bind_call(model, (rows,), {}), mode=Mode.TRAIN)
    assert not codes and (fx.GraphModule.recompile, fx.Graph.lint) == (recompile, lint)
    torch.testing.assert_close(forward.traced.graph(rows)[0], model(rows))
    assert codes == [forward.traced.graph.graph]
