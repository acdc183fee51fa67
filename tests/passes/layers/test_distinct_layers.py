"""What is repeated is converted, searched and rewritten once, and gives the module that it gives written out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import stretto.ir.equivalence.integer_ranges as integer_ranges
import stretto.ir.verifier as verifier
import stretto.passes.normalize.idioms.pattern as pattern
import stretto.passes.rewriting as rewriting
import torch
from stretto import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode
from stretto.frontend.converter import Converter
from stretto.frontend.to_ir import Layers, to_module
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.ir.layers import layer_of, unnumbered_path
from stretto.ir.locations import from_location
from stretto.ir.module import Module, operations
from stretto.passes.default_pipeline import PipelineConfig, phases
from stretto.passes.layers.fold_layers import FoldLayers
from stretto.passes.layers.unfold_layers import UnfoldLayers
from stretto.passes.manager import PassManager
from stretto.passes.normalize.idioms.function_dataflow import FunctionDataflow
from torch import nn

from ...subsets import only, some
from ..models import captured
from .stacks import SmallLayer, Stack

UNTIL_FOLDED = ("annotate", "normalize", "blocks", "fold")
AFTERWARDS = ("place", "partition", "overlap")
FOLLOWED = "functions searched for uses of integers"
PLAN = """
mesh (dp=2, tp=2)
shard "*.mix.weight", "*.up.weight" dim 0 over tp
shard "*.out.weight", "*.down.weight" dim 1 over tp
"""


def stacked(model: nn.Module, **options: Any) -> Capture:
    return capture(model, (torch.zeros(4, 3, 8),), {}, mode=Mode.TRAIN, loss_only=True, **options)


def unlike(layers: int) -> nn.Module:
    """Layers of which one has another activation's width, and one is frozen."""
    model = Stack(layers)
    model.layers[1].block.up, model.layers[1].block.down = nn.Linear(8, 16), nn.Linear(16, 8)
    model.layers[2].requires_grad_(False)
    return model


CAPTURES: dict[str, Callable[[], Capture]] = {
    "gpt": lambda: captured("gpt"),
    "llama": lambda: captured("llama"),
    "gpt2": lambda: captured("gpt2"),
    "dropout": lambda: stacked(Stack(3, drop=0.5)),
    "a parameter of all layers": lambda: stacked(Stack(3, shares=True)),
    "16 bits": lambda: stacked(Stack(3), compute=torch.bfloat16),
    "unlike layers": lambda: stacked(unlike(6)),
    "no repeated layer": lambda: stacked(Stack(1)),
}


IN_DEFAULT_RUN = ("unlike layers",)


def folded(step: Capture, layers: Layers, plan: str = "mesh (dp=2)") -> Module:
    """The module of a capture, run through the passes up to `fold-layers`."""
    owners = {tensor.name: "linear" for tensor in step.inputs if ".up." in tensor.name}
    module = to_module(step, owners, layers=layers)
    run(module, UNTIL_FOLDED, plan)
    return module


def run(module: Module, some_phases: Sequence[str], plan: str) -> None:
    """Run some phases of the default pipeline."""
    every = phases(PipelineConfig(Plan.parse(plan)))
    PassManager([pass_ for phase in some_phases for pass_ in every[phase]]).run(module)


@pytest.mark.parametrize("name", only(IN_DEFAULT_RUN, CAPTURES))
def test_layers_that_are_folded_first_end_as_those_that_are_folded_last(name: str) -> None:
    step = CAPTURES[name]()
    early, late = (folded(step, layers) for layers in (Layers.FOLDED, Layers.WRITTEN_OUT))
    assert str(early) == str(late)
    assert places(early) == places(late)


def places(module: Module) -> list[list[str]]:
    """The places of all operations, without the numbers of layers."""
    return [
        [unnumbered_path(from_location(op.location).module_path) for op in operations(function)]
        for function in module.functions().values()
    ]


@pytest.mark.parametrize("name", only(IN_DEFAULT_RUN, CAPTURES))
def test_a_folded_capture_written_out_is_the_whole_capture(name: str) -> None:
    step = CAPTURES[name]()
    whole, early = (to_module(step, layers=layers) for layers in (Layers.WRITTEN_OUT, Layers.FOLDED))
    UnfoldLayers().run(early)
    for module in (whole, early):
        FoldLayers().run(module)
        UnfoldLayers().run(module)
    assert str(early) == str(whole)


def test_a_parameter_that_the_plan_cuts_in_one_layer_alone_gives_that_layer_a_function_of_its_own() -> None:
    plan = f'{PLAN}\nshard "layers.1.block.up.weight" dim 0 over dp, tp'
    step = stacked(Stack(5))
    early, late = (folded(step, layers, plan) for layers in (Layers.FOLDED, Layers.WRITTEN_OUT))
    assert str(early) == str(late)
    written_out = {from_location(op.location).module_path for op in operations(early.functions()["main"])}
    assert "layers.1.block.up" in written_out and "layers.2.block.up" not in written_out


@pytest.mark.parametrize("reduce", some("bf16", "fp32"))
@pytest.mark.slow
def test_gradients_are_reduced_before_the_casts_at_the_end_of_a_layer(reduce: str) -> None:
    plan = f"{PLAN}\nprecision {{ params fp32  compute bf16  reduce {reduce} }}"
    step = stacked(Stack(3), compute=torch.bfloat16)
    early, late = (folded(step, layers, plan) for layers in (Layers.FOLDED, Layers.WRITTEN_OUT))
    assert str(early) == str(late)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts, inside, the work on operations and functions that is to go by distinct layer."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return original(*args, **kwargs)

        patched.setattr(owner, name, counting)

    with monkeypatch.context() as patched:
        count(Converter, "convert", "nodes converted")
        count(rewriting.Site, "__init__", "operations that may be rewritten")
        count(FunctionDataflow, "_read", "operations searched")
        count(pattern._Search, "_unify", "attempts to match")
        count(verifier._Checker, "_own_problems", "operations verified")
        count(integer_ranges._Walker, "walk", FOLLOWED)
        yield counts


def test_the_work_after_capture_goes_by_distinct_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, sizes, plan = {}, {}, 'mesh (tp=2)\nshard "*.up" columns over tp'
    for layers in (4, 8, 16):
        model = Stack(0)
        model.layers.extend(SmallLayer(8) for _ in range(layers))
        step = stacked(model)
        with counted(monkeypatch) as counts[layers]:
            module = folded(step, Layers.FOLDED, plan)
            sizes[layers] = Counter({name: len(list(operations(f))) for name, f in module.functions().items()})
            infer_ranges(module)
            run(module, AFTERWARDS, plan)
        counts[layers]["operations searched"] -= 2 * layers  # main's calls
    assert counts[4] == counts[8] == counts[16] and counts[4].pop(FOLLOWED) == 4 and min(counts[4].values()) > 20
    assert sizes[16]["layers_forward"] == sizes[4]["layers_forward"] > 8
    assert (sizes[16] - sizes[8])["main"] == 2 * (sizes[8] - sizes[4])["main"] == 16, "two calls a layer"


def test_numbers_of_layers_are_found_in_module_paths() -> None:
    layer = layer_of("model.layers.12.mlp", backward=True)
    assert layer is not None and (layer.path, layer.function_name) == ("model.layers.12", "model_layers_backward")
    assert layer_of("model.norm", backward=False) is None
