"""Whole parameters are alive of 1 + `prefetch` units at most: counted in the functions of final modules."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import pytest
import torch
from stretto.ir.module import Module
from stretto.ir.types import from_mlir
from stretto.passes.graph import Graph
from torch import Tensor, nn

from ..subsets import some
from .checking import compiled, compiled_model
from .models import MODELS, Case, Size

SIZE = Size(vocab=44, width=16, heads=4, head=4, inner=24, seq=8, batch=4, layers=4)
_HANDED_ON = ("comm.wait", "aten.slice.Tensor", "aten.t.default", "aten.view.default", "aten.permute.default")
BYTES = 8
PIPELINE = "\npipeline over pp {{ microbatches 2  schedule {} }}"


class Unlike(nn.Module):
    """Linear layers no two of which are alike, so that none are folded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 + 2 * i, 6 + 2 * i) for i in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


def gathered_bytes(module: Module) -> Iterator[int]:
    """For each function, the most bytes of gathered parameters that are alive at once, from start to last use."""
    for function in module.functions().values():
        graph = Graph.of(function)
        position = {node: index for index, node in enumerate(graph.nodes)}
        alive = [0] * len(graph.nodes)
        for start in (node for node in graph.nodes if node.name == "comm.all_gather_start"):
            values, last = list(start.values), 0
            for value in values:
                users = graph.users.get(value, [])
                last = max([last, *(position[user] for user in users)])
                values += [v for user in users if user.name in _HANDED_ON for v in user.values]
            [wait] = graph.users[start.values[0]]
            gathered = from_mlir(wait.values[0].type)
            for index in range(position[start], last + 1):
                alive[index] += prod(gathered.shape) * gathered.dtype.itemsize
        yield max(alive, default=0)


def largest_unit(model: nn.Module, depth: int) -> int:
    """The bytes of the largest unit: a layer, an embedding, a head."""
    units: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        unit = ".".join(name.split(".")[:depth])
        units[unit] = units.get(unit, 0) + parameter.numel() * BYTES
    return max(units.values())


@pytest.mark.parametrize(
    ("mesh", "prefetch", "rest"),
    some(
        ("pp=2, dp=2", 1, PIPELINE.format("1f1b")),
        ("dp=2", 1, ""),
        ("dp=2", 0, ""),
        ("dp=2", 2, ""),
        ("pp=2, dp=2", 0, PIPELINE.format("zb-v")),
    ),
)
def test_models_that_do_not_fold_gather_as_few_modules_ahead_and_in_tasks_too(
    mesh: str, prefetch: int, rest: str
) -> None:
    model, text = Unlike(), f"mesh ({mesh})\nzero 3 over dp {{ prefetch {prefetch} }}{rest}"
    final = Module.parse(compiled_model(model, {"x": torch.randn(4, 4)}, text).program.ir)
    assert 0 < max(gathered_bytes(final)) <= (1 + prefetch) * largest_unit(model, 2)


@pytest.mark.parametrize("mesh", some("dp=2", "pp=2, dp=2"))
@pytest.mark.parametrize("prefetch", some(1, 0, 2))
def test_a_language_model_holds_its_embedding_and_head_as_it_holds_a_layer(mesh: str, prefetch: int) -> None:
    case: Case = MODELS["gpt"](SIZE)
    rest = PIPELINE.format("interleaved") if "pp" in mesh else ""
    final = Module.parse(compiled(case, f"mesh ({mesh})\nzero 3 over dp {{ prefetch {prefetch} }}{rest}").program.ir)
    assert 0 < max(gathered_bytes(final)) <= (1 + prefetch) * largest_unit(case.model, 2)
