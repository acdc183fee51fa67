"""`stretto cache`, and `stretto compile` with a cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Command

TARGET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), {"input": torch.randn(4, 4)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRETTO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(TARGET)
    (tmp_path / "net.plan").write_text("mesh (dp=2)\n")
    return tmp_path


def arguments(folder: Path, output: str, *more: str) -> list[str]:
    target = f"{folder / 'net.py'}:net"
    plan = str(folder / "net.plan")
    return ["compile", target, "--plan", plan, "--mode", "infer", "-o", str(folder / output), *more]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cached_compile_writes_the_same_folder_and_the_command_shows_and_clears_the_cache(
    folder: Path, stretto: Command
) -> None:
    first = json.loads(stretto(*arguments(folder, "first"), "--json").out)
    second = json.loads(stretto(*arguments(folder, "second"), "--json").out)
    assert "passes" in first["seconds"]
    assert "passes" not in second["seconds"]
    assert files(folder / "second") == files(folder / "first")

    entries = list((folder / "cache" / "programs").iterdir())
    shown = json.loads(stretto("cache", "--json").out)
    assert shown == {"folder": str(folder / "cache"), "entries": 1, "bytes": entries[0].stat().st_size}
    assert stretto("cache").out.startswith("1 program, ")
    assert stretto("cache", "--clear").out.startswith("removed 1 program, ")
    assert stretto("cache").out.startswith("0 programs, 0 B, in ")


def test_dumping_the_ir_runs_every_pass_whatever_is_cached(folder: Path, stretto: Command) -> None:
    stretto(*arguments(folder, "first"))
    stretto(*arguments(folder, "second", "--dump-ir", str(folder / "dump")))
    assert len(list((folder / "dump").glob("*.mlir"))) > 5


def test_the_command_says_that_the_cache_is_off(stretto: Command) -> None:
    assert stretto("cache").out == "the compile cache is off (STRETTO_CACHE)\n"
    assert json.loads(stretto("cache", "--json").out)["folder"] is None


def test_a_cache_that_cannot_be_cleared_is_an_error(
    folder: Path, stretto: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRETTO_CACHE", str(folder / "net.py"))
    done = stretto("cache", "--clear")
    assert done.code == 1
    assert "error[E0508]: the compile cache in" in done.err
