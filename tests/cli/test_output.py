"""The end of every command: output that cannot be written, errors as JSON, an interrupt at the start."""

from __future__ import annotations

import importlib.abc
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from stretto.__main__ import main

from ..subsets import only
from .conftest import Command
from .faulty import MODULE, register


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module, and a pass `do-harm` beside it."""
    register(tmp_path, monkeypatch)
    (tmp_path / "module.mlir").write_text(MODULE)
    return tmp_path / "module.mlir"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize(
    "more", only([["-p", "cse", "--json"]], [["-p", "cse"], ["-p", "cse", "--json"], ["-p", "nothing", "--json"]])
)
def test_output_that_cannot_be_written_is_one_line(more: list[str], module: Path) -> None:
    command = [sys.executable, "-m", "stretto", "opt", str(module), *more]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1
    if "cse" in more:
        assert done.stderr == "error[E0508]: standard output cannot be written: No space left on device\n"
    else:
        assert "error[E0410]" in done.stderr and "Traceback" not in done.stderr


def test_an_error_is_json_where_json_was_asked_for(stretto: Command, module: Path, tmp_path: Path) -> None:
    module.write_text(MODULE.replace("neg_default", "negg"))
    for command in ("opt", "verify", "bisect", "reduce"):
        done = stretto(command, module, "-p", "cse", "--json")
        report = json.loads(done.out)["error"]
        assert done.code == 1 and "error[E0504]" in done.err
        assert (report["code"], report["file"], report["line"]) == ("E0504", str(module), 4) and "negg" in report[
            "message"
        ]
        assert report["help"] is None and report["notes"] == []
    for command in ("run", "verify", "explain"):
        report = json.loads(stretto(command, tmp_path, "--json").out)["error"]
        assert (report["code"], report["line"]) == ("E0301", None)
    assert json.loads(stretto("diff", module, module, "--json").out)["error"]["code"] == "E0504"
    assert json.loads(stretto("passes", "nothing", "--json").out)["error"]["message"]
    assert json.loads(stretto("doctor", "none.py:none", "--json").out)["error"]["code"] == "E0202"


def test_a_dash_is_standard_output(stretto: Command, module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(module.parent)
    for command in ("opt", "reduce"):
        plain = stretto(command, module, "-p", "do-harm").out
        assert plain and stretto(command, module, "-p", "do-harm", "-o", "-").out == plain
        assert "comm" in json.loads(stretto(command, module, "-p", "do-harm", "-o", "-", "--json").out)["module"]
    assert not Path("-").exists()


class _Interrupting(importlib.abc.MetaPathFinder):
    """Ctrl-C while the command is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name == "stretto.cli":
            raise KeyboardInterrupt


def test_an_interrupt_while_the_command_is_imported_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "stretto.cli")
    monkeypatch.setattr(sys, "meta_path", [_Interrupting(), *sys.meta_path])
    assert main() == 130
    assert capsys.readouterr() == ("", "stretto: interrupted\n")
