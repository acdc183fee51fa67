"""`torch.compile(.., backend="stretto")` gives what plain PyTorch gives, graph by graph, under the model's names."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.model.dynamo_backend import _Compiled
from stretto.driver.model.dynamo_backend import stretto as backend
from torch import Tensor, nn
from torch.nn import functional as F

from ...subsets import some

PLAN = """
mesh (dp=2, tp=2)
shard "layers.0" columns over tp
shard "layers.1" rows over tp
shard "embed" vocab over tp
"""


class Model(nn.Module):
    """A tied embedding, two layers, a batch norm; cut in two by a graph break where one is asked for."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.breaks = breaks
        self.embed, self.norm = nn.Embedding(5, 4), nn.BatchNorm1d(4)
        self.layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 4)])
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.breaks:
            torch._dynamo.graph_break()
        x = self.norm(self.layers[1](torch.relu(self.layers[0](x))))
        logits: Tensor = self.head(x)
        return logits


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Graphs of other tests are forgotten."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[_Compiled]:
    """Every graph that is compiled."""
    graphs: list[_Compiled] = []
    original = _Compiled.__init__

    def noted(self: _Compiled, *values: Any) -> None:
        original(self, *values)
        graphs.append(self)

    monkeypatch.setattr(_Compiled, "__init__", noted)
    return graphs


def test_torch_finds_the_backend_by_its_name() -> None:
    [result] = [
        entry_point for entry_point in entry_points(group="torch_dynamo_backends") if entry_point.name == "stretto"
    ]
    assert result.load() is backend


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("breaks", some(True, False), ids=["two graphs", "one graph"])
def test_a_model_trains_and_evaluates_as_in_plain_pytorch(breaks: bool, compiled_graphs: list[_Compiled]) -> None:
    torch.manual_seed(0)
    model = Model(breaks).double()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend, options={"plan": PLAN})
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9) for module in (model, plain)]
    for _ in range(3):
        tokens, targets = torch.randint(5, (4,)), torch.randint(5, (4,))
        losses = []
        for module, optimizer in zip((compiled, plain), optimizers, strict=True):
            loss = F.cross_entropy(module(tokens), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for own, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(own, other, rtol=0, atol=1e-12)
    compiled.eval()
    plain.eval()
    with torch.no_grad():
        assert torch.allclose(compiled(tokens), plain(tokens), rtol=0, atol=1e-12)
    assert len(compiled_graphs) == (4 if breaks else 2)
    cut = {p.name for graph in compiled_graphs for p in graph.compiled.last.program.of_kind("parameter") if p.shards}  # type: ignore[union-attr]
    assert cut >= {"layers.0.weight", "layers.0.bias", "layers.1.weight", "embed.weight"}


def test_operations_keep_the_users_lines_and_modules(compiled_graphs: list[_Compiled]) -> None:
    compiled = torch.compile(Model(), backend=backend, options={"plan": PLAN})
    compiled(torch.arange(4))
    places = compiled_graphs[0].compiled.last.program.locations  # type: ignore[union-attr]
    assert all(place.file == __file__ for place in places if place.file)
    assert {"layers.0", "layers.1", "norm", "embed"} <= {place.module for place in places}


def test_another_batch_is_right_too() -> None:
    model = Model().double().eval()
    compiled = torch.compile(model, backend=backend, options={"plan": PLAN})
    for batch in (4, 6, 8):
        tokens = torch.arange(batch) % 5
        with torch.no_grad():
            assert torch.allclose(compiled(tokens), model(tokens), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("breaks", [False, True], ids=["one graph", "two graphs"])
def test_a_last_batch_that_ranks_cannot_share_evenly_is_right_too(breaks: bool) -> None:
    torch.manual_seed(0)
    model = Model(breaks).double()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend, options={"plan": PLAN})
    for rows in (4, 4, 3):
        tokens, targets = torch.randint(5, (rows,)), torch.randint(5, (rows,))
        actual, expected = (F.cross_entropy(module(tokens), targets) for module in (compiled, plain))
        actual.backward()
        expected.backward()
        assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, rtol=0, atol=1e-12)
    for own, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(own, other, rtol=0, atol=1e-12)


def test_a_function_over_two_models_names_their_parameters_apart(compiled_graphs: list[_Compiled]) -> None:
    first, second = nn.Linear(4, 8).double(), nn.Linear(8, 4).double()

    def both(x: Tensor) -> Tensor:
        y: Tensor = second(first(x))
        return y

    plan = 'mesh (tp=2)\nshard "first" columns over tp\nshard "second" rows over tp'
    x = torch.randn(2, 4).double()
    compiled = torch.compile(both, backend=backend, options={"plan": plan})
    assert torch.allclose(compiled(x), both(x), rtol=0, atol=1e-12)
    assert [p.name for p in compiled_graphs[0].compiled.last.program.of_kind("parameter")] == [  # type: ignore[union-attr]
        "first.weight", "first.bias", "second.weight", "second.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [None, {}, {"plan": "mesh (dp=2)", "level": 3}])
def test_options_other_than_a_plan_are_refused(options: dict[str, Any] | None) -> None:
    graph = torch.fx.symbolic_trace(nn.Linear(2, 2))
    with pytest.raises(stretto.StrettoError, match="got the options") as caught:
        backend(graph, [], options=options)
    assert caught.value.code == "E0607"


def test_a_plan_that_says_what_to_compute_in_is_refused_since_the_dtypes_are_fixed() -> None:
    graph = torch.fx.symbolic_trace(nn.Linear(2, 2))
    with pytest.raises(stretto.StrettoError, match="fixed the dtypes") as caught:
        backend(graph, [], options={"plan": "mesh (dp=2)\nprecision { compute bf16 }"})
    assert (caught.value.code, caught.value.span and caught.value.span.line) == ("E0608", 2)


@pytest.mark.filterwarnings("ignore:.*cuts nothing:stretto.diagnostics.PlanWarning")
def test_a_plan_that_matches_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    plan = 'mesh (tp=2)\nshard "layer.0" columns over tp'
    compiled = torch.compile(Model(), backend=backend, options={"plan": plan})
    with caplog.at_level(logging.WARNING, "stretto"):
        compiled(torch.arange(4))
    assert "no pattern of the plan matches a parameter of this graph" in caplog.text
