"""What a compiled program records for its checks, and the warnings of compiling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import stretto.runtime.program.program as program_module
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import Compiled, CompileRequest, Observer, Options
from stretto.dsl import Plan
from stretto.ir.equivalence.integer_ranges import IntegerRange
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.ir.module import Module
from stretto.runtime.errors import ProgramError
from torch import Tensor, nn
from torch.nn import functional


class _Lookup(nn.Module):
    """Tokens index a table of 11 entries; labels may be 3, which is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        logits = self.head(self.table(tokens.view(-1)))
        return functional.cross_entropy(logits, labels.view(-1), ignore_index=3)


def _compiled(plan: str, rows: int = 4) -> Compiled:
    zeros = torch.zeros(rows, 3, dtype=torch.int64)
    return compile_program(CompileRequest.of(_Lookup(), (zeros, zeros.clone()), {}, Plan.parse(plan)))


def test_checks_learn_from_the_graph_what_indices_may_be_whatever_the_example_holds() -> None:
    inputs = _compiled("mesh (dp=2)").program.manifest.arguments["inputs"]
    assert inputs == {"tokens": {"high": 11}, "labels": {"high": 5, "ignore_index": 3}}


def test_an_axis_that_shards_nothing_is_reported() -> None:
    remarks = [str(r) for run in _compiled("mesh (dp=2, foo=2)").runs for r in run.report.remarks]
    assert any('axis "foo" of the mesh cuts nothing' in remark for remark in remarks)
    assert not any('axis "dp"' in remark for remark in remarks)


@pytest.mark.parametrize(("rows", "says"), [(1, "pass 2, mark"), (3, "pass 2 or 4, mark")])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(rows: int, says: str) -> None:
    with pytest.raises(StrettoError, match=says) as caught:
        _compiled("mesh (dp=2)", rows)
    assert caught.value.code == "E0401"


def test_a_reduction_bears_the_place_of_what_made_it_needed() -> None:
    compiled = _compiled('mesh (tp=2)\nshard "head" rows over tp\n')
    places = compiled.program.locations
    starts = [i for f in compiled.program.functions.values() for i in f.code if i.op == "comm.all_reduce_start"]
    assert places[starts[0].loc or 0].module == "head"


class _Counting(nn.Module):
    """Integers that index nothing, that index a table, and that a constant holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.register_buffer("kinds", torch.tensor([[2, 4]]))
        self.register_buffer("places", torch.tensor([[3, 1000]]))

    def forward(self, x: Tensor) -> Tensor:
        known = torch.tensor([-5, 7], device=x.device)
        return x * self.kinds + self.table(self.places.clamp(max=10)).sum(-1) + known


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_integers_that_a_model_holds_bound_random_ones_where_the_graph_says_less(device: str) -> None:
    texts: dict[str, str] = {}
    model = _Counting().to(device)
    options = Options(keep_weights=False)
    request = CompileRequest.of(model, (torch.randn(4, 2, device=device),), {}, Plan.parse("mesh (dp=2)"), options)
    compile_program(request, Observer(module=lambda name, module: texts.update({name: module.text()})))
    names = ("kinds", "places")
    for name in ("captured", "propagate-placements"):
        ranges = infer_ranges(Module.parse(texts[name]))
        expected_ranges = {"kinds": IntegerRange(5, low=2), "places": IntegerRange(11, low=3)}
        assert {key: ranges.get(key) for key in names} == (
            expected_ranges if device == "cpu" else {"kinds": None, "places": IntegerRange(11)}
        )
        assert device == "meta" or IntegerRange(8, low=-5) in ranges.values()


def test_a_compile_validates_once_and_reads_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[object] = []
    read: list[object] = []
    validate = program_module.validate
    monkeypatch.setattr(program_module, "validate", lambda *parts: validated.append(parts) or validate(*parts))
    monkeypatch.setattr(program_module, "validate_reference", read.append)
    program = _compiled("mesh (dp=2)").program
    assert len(validated) == 1 and not read
    assert program.validated is program and replace(program, initial={}).validated and len(validated) == 1
    altered = {name: replace(function, slots=function.slots + 1) for name, function in program.functions.items()}
    with pytest.raises(ProgramError):
        assert replace(program, functions=altered).validated
    assert len(validated) == 2
    assert program.single_device is not None and read == [program.single_device]
