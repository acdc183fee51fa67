"""`split tokens` and `split batch`: layers on nanobatches are one device, hold one at a time, or hide collectives."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from stretto.driver.compile.request import Compiled
from stretto.driver.readings.plan_rows import rows_of_plan
from stretto.dsl import PlanError
from stretto.frontend.captured import Mode
from stretto.ir.module import Module, operations
from stretto.ir.operations import read
from stretto.runtime.checks.program_check import check
from stretto.runtime.program.program import Program
from stretto.runtime.prover import prove
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import some
from .checking import assert_equal, assert_report, compiled, compiled_model
from .models import MODELS, Case, Size, plan

SIZE = {"vocab": 44, "width": 16, "heads": 4, "head": 4, "inner": 24, "seq": 8}
BATCH, SEQ, LONG, WIDTH, INNER = 2, 64, 512, 8, 64
INTERLEAVE = "{ order interleave }"


@cache
def _case(model: str) -> Case:
    return MODELS[model](Size(batch=4, layers=2, **SIZE))


class Layer(nn.Module):
    """A residual feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    """Equal layers, which fold, without a large head."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def _net(line: str, mode: Mode = Mode.TRAIN, layers: int = 2, seq: int = SEQ) -> Program:
    x = {"x": torch.zeros(BATCH, seq, WIDTH)}
    return compiled_model(Net(layers), x, f"mesh (tp=1)\n{line}", mode).program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mesh", "lines"),
    [
        ("gpt", "dp=2", "split batch into 2"),
        ("gpt", "dp=1", "split batch into 4 { order interleave  sizes 1, 1, 1, 1 }"),
        ("gpt", "dp=2, tp=2", 'split tokens into 3\nrecompute "blocks.*"'),
        ("gpt", "dp=2", 'split tokens into 2 { in "*.up", "blocks.1" }'),
        ("gpt", "dp=2, tp=2", f"shard activations tokens over tp\nsplit tokens into 2 {INTERLEAVE}"),
        ("gpt2", "dp=1", "split tokens into 2 { sizes 1, 3 }"),
        ("gpt2", "dp=2", 'zero 2 over dp\nsplit batch into 2\nrecompute "*.mlp", attention'),
        ("llama", "dp=2", "split loss into 2\nsplit tokens into 4"),
        ("llama", "dp=2, tp=2", f'split tokens into 2 {INTERLEAVE}\nrecompute "*.layers.*"'),
        ("llama", "dp=2, tp=2", f"shard activations tokens over tp\nsplit batch into 2 {INTERLEAVE}"),
        ("llama", "dp=2, tp=2", "zero 3 over dp { bucket 2KB }\nsplit batch into 2 { order interleave }"),
        (
            "llama",
            "pp=2, dp=2",
            "zero 3 over dp\npipeline over pp { schedule zb-v  microbatches 2 }\nsplit tokens into 3",
        ),
        ("llama", "pp=2, tp=2", f"pipeline over pp {{ microbatches 2 }}\nsplit batch into 2 {INTERLEAVE}"),
        ("llama", "cp=2", "shard inputs dim 1 over cp\nattention over cp { method ring }\nsplit tokens into 2"),
        (
            "llama",
            "cp=2",
            "shard inputs dim 1 over cp\nattention over cp { method ring  layout zigzag }\nsplit tokens into 2",
        ),
        ("llama", "cp=2", "shard inputs dim 1 over cp\nattention over cp { method all_to_all }\nsplit tokens into 2"),
    ],
)
def test_a_model_trains_as_on_one_device(model: str, mesh: str, lines: str) -> None:
    text = plan(model, mesh, *lines.split("\n"))
    assert_equal(_case(model), text)
    program = compiled(_case(model), text).program
    assert prove(program).safe
    assert rows_of_plan(program, text, _case(model).model) == []


def _compiled(model: str, text: str) -> tuple[Compiled, list[list[str]]]:
    """A program, and the operations of its layers' functions behind the last pass."""
    found: list[list[str]] = []

    def look(name: str, module: Module) -> None:
        if name == "start-collectives":
            layers = (f for n, f in module.functions().items() if n != "main")
            found.extend([call.name for op in operations(f) if (call := read(op)) is not None] for f in layers)

    return compiled(_case(model), text, after=look), found


def _hidden(names: list[str]) -> list[bool]:
    """For each collective of a function, in order: whether a product of matrices stands between start and wait."""
    starts = [i for i, name in enumerate(names) if name == "comm.all_reduce_start"]
    waits = [i for i, name in enumerate(names) if name == "comm.wait"]
    products = {"aten.mm.default", "aten.addmm.default"}
    return [not products.isdisjoint(names[start:wait]) for start, wait in zip(starts, waits, strict=True)]


@pytest.mark.parametrize("subject", some("tokens", "batch"))
def test_the_collectives_of_one_nanobatch_are_under_way_while_another_computes(subject: str) -> None:
    """But for the last of a layer's forward, behind which the layer ends: two all-reduces a layer and direction."""
    result, functions = _compiled("gpt", plan("gpt", "tp=2", f"split {subject} into 2 {INTERLEAVE}"))
    forward, backward = functions
    assert _hidden(forward) == [True, True, True, False] and _hidden(backward) == [True] * 4
    torch.manual_seed(0)
    assert_report(check(result.program))
    assert prove(result.program).safe


@pytest.mark.slow
def test_without_nanobatches_no_collective_of_the_forward_is_hidden() -> None:
    _, (forward, backward) = _compiled("gpt", plan("gpt", "tp=2"))
    assert _hidden(forward) == [False, False] and _hidden(backward) == [False, True]


def test_in_sequence_the_activations_of_one_nanobatch_are_alive() -> None:
    """A forward alone holds what enters and what leaves `gelu`, of INNER features: of one nanobatch."""
    inner = BATCH * SEQ * INNER * 8
    whole, split = (prove(_net(line, Mode.INFER)).peak_bytes for line in ("", "split tokens into 4"))
    assert whole - split == (1 - 1 / 4) * 2 * inner


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["tokens", "batch"])
def test_in_sequence_the_backward_computes_one_nanobatch_again_at_a_time(subject: str) -> None:
    """StreamBP: of what is computed again 1/N is alive; of INNER features at least two tensors."""
    inner = BATCH * LONG * INNER * 8
    counts = (1, 2) if subject == "batch" else (1, 2, 4, 8)
    lines = [f"\nsplit {subject} into {count}" if count > 1 else "" for count in counts]
    peaks = [prove(_net(f'recompute "layers.*"{line}', seq=LONG)).peak_bytes for line in lines]
    for count, peak in zip(counts, peaks, strict=True):
        assert peaks[0] - peak >= 0.93 * (1 - 1 / count) * 2 * inner
    falls = [before - after for before, after in pairwise(peaks)]
    assert all(more == pytest.approx(2 * less, rel=0.05) for more, less in pairwise(falls[1:]))


def test_what_is_written_grows_by_the_nanobatches_of_a_layer_and_not_by_layers() -> None:
    once, twice, deep = (_net(f"split tokens into {n}", Mode.INFER, layers) for n, layers in ((2, 2), (4, 2), (2, 4)))

    def steps(program: Program) -> int:
        [layer] = (function for name, function in program.functions.items() if name != "main")
        return sum(step.op.startswith(("aten.addmm", "aten.mm", "aten.gelu")) for step in layer.code)

    assert (steps(once), steps(twice), steps(deep)) == (2 * 3, 4 * 3, 2 * 3)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("split batch into 3", "E0139", "a rank has 2 samples of a microbatch: they would have 0, 1, 1"),
        ('split batch into 2 { in "*.mpl" }', "E0114", 'the pattern "*.mpl" matches no module'),
    ],
)
def test_what_cannot_be_split_is_refused_at_its_statement(line: str, code: str, message: str) -> None:
    with pytest.raises(PlanError) as refused:
        _net(line, Mode.INFER)
    assert refused.value.code == code and message in refused.value.message and refused.value.span is not None


def test_few_tokens_stay_whole_where_the_plan_says_so_and_a_plan_that_was_not_followed_is_seen() -> None:
    program = _net("split tokens into 2 { from 65 }", Mode.INFER)
    [note] = (each for each in program.remarks if each["pass"] == "cut-nanobatches")
    assert "a rank has 64 tokens of a sequence, fewer than the 65" in note["message"] and note["kind"] == "note"
    rows = rows_of_plan(program, "mesh (tp=1)\nsplit tokens into 2", Net())
    assert [row.name for row in rows] == ["split tokens"]
    assert rows_of_plan(program, "mesh (tp=1)\nsplit tokens into 2 { from 65 }", Net()) == []


class Mixed(nn.Module):
    """A function of all tokens at once."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


def test_a_split_of_what_needs_all_tokens_warns_with_the_operation() -> None:
    x = {"x": torch.zeros(BATCH, SEQ, WIDTH)}
    program = compiled_model(Mixed(), x, "mesh (dp=1)\nsplit tokens into 2", Mode.INFER).program
    [warning] = (each for each in program.remarks if each["kind"] == "warning")
    assert "no operation that it names runs on a part of the tokens: aten.cumsum" in warning["message"]
