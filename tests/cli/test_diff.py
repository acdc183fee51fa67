"""`stretto diff`: what differs between two modules, or two programs, in one step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Command
from .faulty import MODULE

CALLS = """module attributes {comm.level = "comm", comm.mesh = [["tp", 4]]} {
func.func private @layer(%x: tensor<8xf32>) -> tensor<8xf32> {
  %0 = "comm.all_gather"(%x) {axes = ["tp"], dim = 0 : i64} : (tensor<8xf32>) -> tensor<32xf32>
  %1 = "comm.reduce_scatter"(%0) {axes = ["tp"], dim = 0 : i64, reduce = "sum"} : (tensor<32xf32>) -> tensor<8xf32>
  return %1 : tensor<8xf32>
}
func.func @main(%x: tensor<8xf32>) -> tensor<8xf32> {
  %0 = call @layer(%x) : (tensor<8xf32>) -> tensor<8xf32>
  %1 = call @layer(%0) : (tensor<8xf32>) -> tensor<8xf32>
  return %1 : tensor<8xf32>
}
}
"""


@pytest.fixture
def modules(tmp_path: Path) -> tuple[Path, Path]:
    """Two files that hold the same module."""
    for name in "ab":
        (tmp_path / f"{name}.mlir").write_text(MODULE)
    return tmp_path / "a.mlir", tmp_path / "b.mlir"


def test_equal_modules_exit_with_0(stretto: Command, modules: tuple[Path, Path]) -> None:
    done = stretto("diff", *modules)
    assert (done.code, done.err) == (0, "") and done.out.splitlines()[-1] == "equal"
    report = json.loads(stretto("diff", *modules, "--json").out)
    assert report["equal"] and report["ops"] == [] and report["a"]["collectives"] == 1


def test_operations_that_come_and_go_are_counted(stretto: Command, modules: tuple[Path, Path]) -> None:
    assert stretto("opt", modules[0], "-p", "start-collectives", "-o", modules[1]).code == 0
    done = stretto("diff", *modules)
    assert done.code == 1 and done.out.splitlines()[-1] == "they differ"
    rows = [line.split() for line in done.out.splitlines()]
    assert ["comm.all_reduce", "1", "0", "-1"] in rows and ["comm.wait", "0", "1", "+1"] in rows
    report = json.loads(stretto("diff", *modules, "--json").out)
    assert report["communication"] == [] and report["a"]["sent_bytes"] == report["b"]["sent_bytes"] == 16


def test_communication_counts_for_every_call_with_its_bytes(stretto: Command, modules: tuple[Path, Path]) -> None:
    modules[1].write_text(CALLS)
    report = json.loads(stretto("diff", *modules, "--json").out)
    by_kind = {entry["kind"]: entry for entry in report["communication"]}
    gathered = {"count": 2, "tensor_bytes": 2 * 32 * 4, "sent_bytes": 2 * 32 * 4 * 3 // 4}
    assert by_kind["all_gather"]["b"] == by_kind["reduce_scatter"]["b"] == gathered
    assert by_kind["all_gather"]["a"] == {"count": 0, "tensor_bytes": 0, "sent_bytes": 0}
    assert report["b"]["peak_bytes"] == (8 + 32) * 4
    assert "all_gather over tp" in stretto("diff", *modules).out


def test_other_operands_and_other_lines_are_distinguished(stretto: Command, modules: tuple[Path, Path]) -> None:
    modules[1].write_text(MODULE.replace('reduce = "sum"', 'reduce = "max"'))
    assert "with other operands or constants" in stretto("diff", *modules).out
    located = MODULE.replace("-> tensor<4xf32>\n", '-> tensor<4xf32> loc(fused["a.b", "model.py":3:0])\n')
    modules[1].write_text(located)
    done = stretto("diff", *modules)
    assert done.code == 1 and done.out.splitlines()[-1] == "they differ only in source lines"
    assert "model.py:3, a.b" in done.out


def test_programs_are_compared_without_the_compiler(
    stretto: Command, program: Path, forward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stretto.driver.commands.outcome.find_spec", lambda name: None)
    assert stretto("diff", program, program).out.splitlines()[-1] == "equal"
    done = stretto("diff", program, forward)
    report = json.loads(stretto("diff", program, forward, "--json").out)
    assert done.code == 1 and "all_reduce over dp" in done.out and "peak of a rank" in done.out
    verified = json.loads(stretto("verify", program, "--json").out)
    assert report["a"]["peak_bytes"] == verified["peak_bytes"] > report["b"]["peak_bytes"]
    assert report["a"]["collectives"] == verified["collectives"]


def test_bad_input_is_refused(stretto: Command, modules: tuple[Path, Path], program: Path, tmp_path: Path) -> None:
    mixed = stretto("diff", modules[0], program)
    assert mixed.code == 2 and "ir.mlir" in mixed.err
    assert "E0301" in stretto("diff", tmp_path, program).err
    assert "E0507" in stretto("diff", modules[0], tmp_path / "none.mlir").err
    modules[1].write_text("hello")
    assert f"{modules[1]}:1:1" in stretto("diff", *modules).err
