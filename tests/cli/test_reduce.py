"""`stretto reduce`: the smallest module on which a pass still fails in the same way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Command
from .faulty import MODULE, register

CHAIN = "\n".join(f'  %{i} = "aten.sin_default"(%{i - 1}) : (tensor<4xf32>) -> tensor<4xf32>' for i in range(10, 30))
DEEP = f"""module attributes {{comm.level = "comm", comm.mesh = [["tp", 2]]}} {{
func.func private @layer(%x: tensor<4xf32>, %y: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {{
  %0 = "aten.mul_tensor"(%x, %y) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  %1 = "aten.exp_default"(%0) : (tensor<4xf32>) -> tensor<4xf32>
  return %0, %1 : tensor<4xf32>, tensor<4xf32>
}}
func.func @main(%x: tensor<4xf32>, %w: tensor<4xf32, {{tp = "partial(sum)"}}>) -> (tensor<4xf32>, tensor<4xf32>) {{
  %8:2 = call @layer(%x, %x) : (tensor<4xf32>, tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>)
  %9:2 = call @layer(%8#0, %8#1) : (tensor<4xf32>, tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>)
  %h = "aten.neg_default"(%9#1) : (tensor<4xf32>) -> tensor<4xf32>
{CHAIN.replace("(%9)", "(%h)")}
  %r = "comm.all_reduce"(%w) {{axes = ["tp"], reduce = "sum"}}
    : (tensor<4xf32, {{tp = "partial(sum)"}}>) -> tensor<4xf32>
  %s = "aten.add_tensor"(%r, %29) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  return %29, %s : tensor<4xf32>, tensor<4xf32>
}}
}}
"""
"""Twenty operations and two calls that have nothing to do with the collective."""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module, and a pass `do-harm` beside it."""
    register(tmp_path, monkeypatch)
    (tmp_path / "module.mlir").write_text(DEEP)
    return tmp_path / "module.mlir"


@pytest.mark.parametrize("harm", ["do-harm", "do-harm{axes=pp}", "do-harm{raises=true}"])
def test_only_what_the_failure_needs_is_left(harm: str, stretto: Command, module: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.mlir"
    done = stretto("reduce", module, "-p", f"cse,{harm},start-collectives", "-o", out, "--seconds", 30)
    assert (done.code, done.out) == (0, "")
    text = out.read_text()
    assert text.count('"comm.all_reduce"') == 1 and "call" not in text and "sin" not in text and "@layer" not in text
    assert "nothing smaller was found" in done.err and f"stretto bisect {out}" in done.err
    again = json.loads(stretto("bisect", out, "--json").out)
    assert (again["pass"], again["passes"]) == ("do-harm", ["do-harm"])


def test_the_module_goes_to_stdout_and_its_figures_to_json(stretto: Command, module: Path) -> None:
    assert stretto("reduce", module, "-p", "do-harm").out.startswith(
        '// "do-harm" changes values\n// pipeline: do-harm'
    )
    report = json.loads(stretto("reduce", module, "-p", "do-harm", "--json").out)
    assert (report["pass"], report["breakage"], report["done"]) == ("do-harm", "values", True)
    assert report["operations_before"] > 20 and report["operations"] < 3 and "comm.all_reduce" in report["module"]


def test_a_time_limit_that_is_reached_is_reported(
    stretto: Command, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stretto.driver.debug.reduce._Search.is_late", True)
    done = stretto("reduce", module, "-p", "do-harm")
    assert done.code == 0 and "--seconds raises it" in done.err


def test_there_is_nothing_to_reduce_where_no_pass_fails(stretto: Command, module: Path) -> None:
    done = stretto("reduce", module, "-p", "cse,canonicalize")
    assert (done.code, done.out) == (1, "") and "error[E0420]" in done.err


def test_an_interrupt_leaves_no_half_written_file(
    stretto: Command, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Path, text: str, **how: object) -> int:
        self.touch()
        raise KeyboardInterrupt

    module.write_text(MODULE)
    monkeypatch.setattr(Path, "write_text", interrupt)
    before = sorted(tmp_path.iterdir())
    assert stretto("reduce", module, "-p", "do-harm", "-o", tmp_path / "out.mlir").code == 130
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_wrong_usage_exits_with_2(stretto: Command, module: Path) -> None:
    assert stretto("reduce", module).code == 2
    assert stretto("reduce", module, "-p", "cse", "--seconds", "0").code == 2
