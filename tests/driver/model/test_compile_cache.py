"""A second run of the same script takes its programs from the compile cache, and computes what the first one did."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.cache.store import ProgramStore
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest
from stretto.driver.model.compiled_module import program_of
from stretto.frontend.capture import distinct_layers
from stretto.frontend.dynamic_sizes import symbolic_capture
from torch import Tensor, nn

PLAN = 'mesh (dp=2, tp=2)\nshard "up" columns over tp\nshard "down" rows over tp'


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.dropout, self.down = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4)
        self.register_buffer("steps", torch.tensor(0.0))
        self.table = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Any]:
        self.steps += 1
        hidden = self.down(self.dropout(self.up(x).relu())) * self.table
        return {"loss": nn.functional.cross_entropy(hidden, labels), "note": "said"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRETTO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def joint_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Grows by one for each backward that is traced."""
    traces: list[str] = []
    plain = distinct_layers.trace_joint

    def counted(*args: Any) -> Any:
        traces.append("joint")
        return plain(*args)

    for module in (distinct_layers, symbolic_capture):
        monkeypatch.setattr(module, "trace_joint", counted)
    yield traces


def compiled(**options: Any) -> Net:
    torch.manual_seed(0)
    return stretto.compile(Net(), plan=PLAN, **options)


def batch(rows: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 4, generator=generator), torch.arange(rows) % 4


def trained(model: Net, rows: int = 4) -> list[Tensor]:
    """The loss and the gradients of a call."""
    torch.manual_seed(1)
    model.zero_grad()
    result = model(*batch(rows))
    result["loss"].backward()
    assert result["note"] == "said"
    return [result["loss"].detach(), model.steps.clone(), *(parameter.grad for parameter in model.parameters())]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_second_model_compiles_nothing_and_computes_the_same(folder: Path, joint_traces: list[str]) -> None:
    first = compiled()
    values = trained(first)
    assert ProgramStore(folder).size().entries == 1
    second = compiled()
    assert same(trained(second), values)
    assert joint_traces == ["joint"]
    fresh, cached = program_of(first), program_of(second)
    assert cached.hash == fresh.hash
    assert cached.texts() == fresh.texts()
    assert cached.manifest == fresh.manifest
    assert same(list(cached.weights.values()), list(fresh.weights.values()))


def test_a_cached_program_takes_the_values_of_its_own_call(folder: Path, joint_traces: list[str]) -> None:
    """The range of the labels that this call shows, and the buffers, are not those of the call that was compiled."""
    trained(compiled())
    model = compiled()
    model.steps.fill_(5.0)
    x, _ = batch()
    model(x, torch.zeros(4, dtype=torch.int64))
    assert model.steps == 6.0
    assert joint_traces == ["joint"]


def test_the_log_says_that_a_program_was_taken_from_the_cache(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "stretto"):
        trained(compiled()), trained(compiled())
    assert [" compiled (train)" in text or " taken from the cache (train)" in text for text in caplog.messages] == [
        True
    ] * 2
    assert " taken from the cache (train)" in caplog.messages[1]


def test_named_sizes_are_cached_with_their_program(folder: Path, joint_traces: list[str]) -> None:
    dynamic = {"x": {0: "batch"}, "labels": {0: "batch"}}
    first = compiled(dynamic=dynamic)
    values = [trained(first, rows) for rows in (4, 8)]
    second = compiled(dynamic=dynamic)
    assert all(same(trained(second, rows), expected) for rows, expected in zip((4, 8), values, strict=True))
    assert program_of(first).texts() == program_of(second).texts()
    assert joint_traces == ["joint"]


def test_a_cached_program_has_what_its_own_model_says(folder: Path) -> None:
    """Weights and sources are not of the cache: `stretto compile` writes the same folder either way."""
    x = torch.randn(4, 4)

    def program(model: nn.Module, store: ProgramStore | None) -> stretto.Program:
        request = CompileRequest.of(model, (x,), {}, stretto.Plan.parse("mesh (dp=2)"))
        return compile_program(CompileRequest(model, request.call, request.plan, cache=store)).program

    store = ProgramStore(folder)
    program(nn.Linear(4, 4), store)
    model = nn.Linear(4, 4)
    cached, fresh = program(model, store), program(model, None)
    assert cached.manifest == fresh.manifest
    assert cached.texts() == fresh.texts()
    assert list(cached.weights) == list(fresh.weights)
    assert same(list(cached.weights.values()), list(fresh.weights.values()))


def test_a_program_that_cannot_be_keyed_is_compiled_with_a_remark(folder: Path) -> None:
    class Special(nn.Parameter):
        pass

    model = compiled()
    model.up.bias = Special(torch.zeros(8))
    trained(model)
    assert ProgramStore(folder).size().entries == 0
    [remark] = [each for each in program_of(model).remarks if each["pass"] == "compile-cache"]
    assert remark["message"] == 'not cached: "up.bias" is a Special of layout torch.strided'


def no_entry(folder: Path) -> Path:
    return next((folder / "programs").iterdir())


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "torn": (lambda entry: entry.write_bytes(entry.read_bytes()[:-9]), "is torn"),
    "unreadable": (lambda entry: (entry.unlink(), entry.mkdir()), "cannot be"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_cache_is_said_in_a_line_and_compiled_without(
    fault: str, folder: Path, joint_traces: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    values = trained(compiled())
    change, message = FAULTS[fault]
    change(no_entry(folder))
    assert same(trained(compiled()), values)
    assert joint_traces == ["joint"] * 2
    assert message in caplog.text
    assert all("\n" not in text for text in caplog.messages)


def test_a_cache_that_cannot_be_written_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath("file").touch()
    monkeypatch.setenv("STRETTO_CACHE", str(tmp_path / "file"))
    trained(compiled())
    assert "the compile cache cannot be written" in caplog.text


def test_the_cache_is_off_where_the_variable_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joint_traces: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STRETTO_CACHE", "off")
    trained(compiled()), trained(compiled())
    assert joint_traces == ["joint"] * 2
    assert not list(tmp_path.iterdir())
