"""`stretto bisect`: the first pass, then the first operation, that breaks a module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Command
from .faulty import MODULE, register

HARM = "cse,do-harm,start-collectives"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module, and a pass `do-harm` beside it."""
    register(tmp_path, monkeypatch)
    (tmp_path / "module.mlir").write_text(MODULE)
    return tmp_path / "module.mlir"


def test_the_pass_and_the_operation_are_named(stretto: Command, module: Path) -> None:
    done = stretto("bisect", module, "-p", HARM)
    rows = [line.split() for line in done.out.splitlines()[1:4]]
    assert done.code == 1
    assert rows == [["cse", "kept"], ["do-harm", "values"], ["start-collectives", "not", "run"]]
    for shown in (
        '"do-harm" is the first pass that changes values',
        "of the module after the pass, in @main",
        "shown by  reduce is min, and was sum",
        'reads     tensor<4xf32, {tp = "partial(sum)"}> of argument 0: right',
    ):
        assert shown in done.out
    assert done.err.endswith(f"stretto opt {module} --no-verify -p cse,do-harm\n")


def test_json_has_all_of_it(stretto: Command, module: Path) -> None:
    done = stretto("bisect", module, "-p", HARM, "--json", "--seed", 2)
    report = json.loads(done.out)
    assert (done.code, report["broken"], report["pass"], report["breakage"]) == (1, True, "do-harm", "values")
    assert report["kept"] == ["cse"] and report["differ"][0]["error"] > 0.01
    assert report["op"]["op"] == "comm.all_reduce" and 'reduce = "min"' in report["op"]["text"]


def test_passes_that_keep_everything_exit_with_0(stretto: Command, module: Path) -> None:
    done = stretto("bisect", module, "-p", "cse,start-collectives")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "kept: all 2 passes left values and order as they were"
    assert not json.loads(stretto("bisect", module, "-p", "cse", "--json").out)["broken"]


def test_a_pass_that_fails_or_leaves_an_invalid_module_is_named_too(stretto: Command, module: Path) -> None:
    failing = stretto("bisect", module, "-p", "do-harm{raises=true}")
    assert failing.code == 1 and 'pass "do-harm" failed: OfItsOwn: no such thing' in failing.out
    invalid = stretto("bisect", module, "-p", "do-harm{axes=pp}")
    assert invalid.code == 1 and "first pass that leaves an invalid module" in invalid.out
    assert "E0505" in invalid.out and "Traceback" not in failing.err + invalid.err
    assert 'shown by  the mesh has no axis "pp"' in invalid.out


def test_a_folder_of_a_dump_has_its_module_and_its_passes(stretto: Command, module: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.mkdir()
    (dump / "00-captured.mlir").write_text(MODULE)
    (dump / "pipeline.txt").write_text("cse,\ndo-harm\n")
    assert json.loads(stretto("bisect", dump, "--json").out)["passes"] == ["cse", "do-harm"]
    assert json.loads(stretto("bisect", dump, "-p", "cse", "--json").out)["passes"] == ["cse"]


def test_bad_input_is_refused_with_a_way_out(stretto: Command, module: Path, program: Path) -> None:
    folder = stretto("bisect", program)
    assert (folder.code, folder.out) == (1, "") and "error[E0509]" in folder.err and "--dump-ir" in folder.err
    assert "E0412" in stretto("bisect", module, "-p", "cse{").err
    memory = stretto("bisect", module, "-p", HARM, "--memory-cap", "16")
    assert memory.code == 1 and "error[E0655]" in memory.err and "--memory-cap" in memory.err
    usage = stretto("bisect", module)
    assert usage.code == 2 and "-p PIPELINE" in usage.err
    module.write_text("hello")
    assert f"{module}:1:1" in stretto("bisect", module, "-p", "cse").err
