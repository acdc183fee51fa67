"""`stretto opt`: passes on the text of modules; and `stretto compile --dump-ir`, whose files it reads."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from stretto import cli
from stretto.passes.manager import PassFailure

from .conftest import Command
from .faulty import register

MODULE = """module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>) {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "aten.neg_default"(%0) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = "aten.exp_default"(%0) : (tensor<4xf32>) -> tensor<4xf32>
  return %1 : tensor<4xf32>
}
}
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    file = tmp_path / "module.mlir"
    file.write_text(MODULE)
    return file


@dataclass(frozen=True)
class _Input:
    """Standard input that holds bytes."""

    buffer: io.BytesIO


def test_a_pass_leaves_its_module_on_stdout(stretto: Command, module: Path) -> None:
    done = stretto("opt", module, "-p", "start-collectives")
    assert (done.code, done.err) == (0, "")
    assert "comm.all_reduce_start" in done.out and "loc(" in done.out


def test_standard_input_is_a_module(
    stretto: Command, module: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = stretto("opt", module, "-p", "canonicalize").out.replace(f'"{module}":', '"-":')
    for arguments in (("-",), ()):
        monkeypatch.setattr(sys, "stdin", _Input(io.BytesIO(MODULE.encode())))
        assert stretto("opt", *arguments, "-p", "canonicalize").out == named


def test_the_output_goes_back_into_opt(stretto: Command, module: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mlir"
    done = stretto("opt", module, "-p", "canonicalize", "-o", out)
    assert (done.code, done.out, done.err) == (0, "", "")
    both = stretto("opt", module, "-p", "canonicalize,start-collectives").out
    assert stretto("opt", out, "-p", "start-collectives").out == both
    assert sorted(path.name for path in tmp_path.iterdir()) == ["module.mlir", "out.mlir"]


def test_modules_are_printed_after_the_passes_that_were_named(stretto: Command, module: Path) -> None:
    pipeline = "cse,canonicalize,start-collectives"
    named = stretto("opt", module, "-p", pipeline, "--print-after=cse").err
    assert named.count("// -----// after") == 1 and "after cse" in named and "comm.all_reduce" in named
    every = stretto("opt", module, "-p", pipeline, "--print-after-all").err
    assert [f"after {name} " in every for name in pipeline.split(",")] == [True, True, True]
    changed = stretto("opt", module, "-p", f"{pipeline},symbol-dce", "--print-changed").err
    assert "after symbol-dce: no change" in changed and "after start-collectives //" in changed


def test_times_and_json_list_every_pass(stretto: Command, module: Path) -> None:
    done = stretto("opt", module, "-p", "cse,start-collectives", "--time-passes", "--json")
    assert [line.split()[-1] for line in done.err.splitlines()] == ["cse", "start-collectives", "total"]
    report = json.loads(done.out)
    assert [(entry["name"], entry["rewritten"]) for entry in report["passes"]] == [("cse", 0), ("start-collectives", 1)]
    assert "comm.wait" in report["module"]


PIPELINES = {
    "start-colectives": ("E0410", 'did you mean "start-collectives"'),
    "cse,": ("E0412", "-p:1:5"),
    "fold-layers{": ("E0412", "never closed"),
    "fold-layers,": ("E0412", "unexpected end"),
    "fold-layers{nothing=1}": ("E0414", "^^^^^^^"),
    "builtin.module(canonicalize{top-down=true nothing=1})": ("E0413", "no such option nothing"),
    "fold-layers{a=1 a=2}": ("E0412", "given twice"),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_mistake_in_the_pipeline_is_shown_at_its_place(pipeline: str, stretto: Command, module: Path) -> None:
    code, shown = PIPELINES[pipeline]
    done = stretto("opt", module, "-p", pipeline)
    assert (done.code, done.out) == (1, "")
    assert f"error[{code}]" in done.err and shown in done.err and "Traceback" not in done.err


def test_a_pass_on_a_module_of_another_level_says_which_it_takes(stretto: Command, module: Path) -> None:
    done = stretto("opt", module, "-p", "cse,partition-tensors")
    assert (done.code, done.out) == (1, "") and "error[E0421]" in done.err and "Traceback" not in done.err
    assert 'expected: level "aten"' in done.err and "--dump-ir" in done.err


def test_an_option_of_another_type_is_shown_at_its_place(
    stretto: Command, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path, monkeypatch)
    done = stretto("opt", module, "-p", "do-harm{raises=maybe}")
    assert (done.code, done.out) == (1, "") and "-p:1:16: error[E0416]" in done.err
    assert "^^^^^ expected true or false" in done.err


LOCATED = MODULE.replace("-> tensor<4xf32>\n", '-> tensor<4xf32> loc(fused["a.b", "model.py":3:0])\n')
MODULES = {
    "no MLIR": ("hello", "E0504", ":1:1"),
    "an unknown op": (MODULE.replace("neg_default", "negg"), "E0504", ":4:8"),
    "an unknown op with a location": (LOCATED.replace("neg_default", "negg"), "E0504", ":4:8"),
    "a wrong type": (LOCATED.replace("return %1 : tensor<4xf32>", "return %1 : tensor<5xf32>"), "E0504", ":6:"),
    "a result of another type": (LOCATED.replace("-> (tensor<4xf32>)", "-> (tensor<5xf32>)"), "E0504", ":6:3"),
    "an unknown axis": (MODULE.replace('axes = ["tp"]', 'axes = ["pp"]'), "E0505", ":3:8"),
    "an unknown axis with a location": (LOCATED.replace('axes = ["tp"]', 'axes = ["pp"]'), "E0505", ":3:8"),
    "a constant that is missing": (LOCATED.replace(', reduce = "sum"', ""), "E0505", ":3:8"),
}


FORMS = {
    "module {}": "no function",
    "func.func private @main(tensor<4xf32>)": "one block",
    "func.func @main(%a: i32) { return }": "not i32",
    "func.func @main(%a: tensor<?xf32>) { return }": "dynamic dim",
    "func.func @main(%a: tensor<4xi17>) { return }": "unknown element type or placement",
    'func.func @main(%a: tensor<4xf32, {tp = "shard(x)"}>) { return }': "not a placement",
    'func.func @main(%a: tensor<4xf32, "tp">) { return }': "unknown element type or placement",
    "func.func @main(%a: tensor<4xf32> {aten.argument = unit}) { return }": "cannot be read",
    "module attributes {comm.level = 3} {}": "cannot be read",
    'module attributes {comm.mesh = "tp"} {}': "cannot be read",
    'module attributes {comm.mesh = [["tp", "two"]]} {}': "must be a list of axes and sizes",
    "module { module {} }": "only functions",
    MODULE.replace('"comm.all_reduce"', '"comm.all_gather"').replace('reduce = "sum"', "dim = 7 : i64"): "a dim of [7]",
    MODULE.replace('axes = ["tp"]', "axes = unit"): "",
}


@pytest.mark.parametrize("text", FORMS)
def test_a_module_without_the_form_that_passes_need_is_refused(text: str, stretto: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.mlir").write_text(text)
    done = stretto("opt", tmp_path / "bad.mlir", "-p", "fold-layers")
    assert (done.code, done.out) == (1, "")
    assert "error[E0505]" in done.err and FORMS[text] in done.err and f"{tmp_path / 'bad.mlir'}:" in done.err


@pytest.mark.parametrize("mistake", MODULES)
def test_a_mistake_in_the_module_is_shown_at_its_line_and_column(
    mistake: str, stretto: Command, tmp_path: Path
) -> None:
    text, code, place = MODULES[mistake]
    file, out = tmp_path / "bad.mlir", tmp_path / "out.mlir"
    file.write_text(text)
    done = stretto("opt", file, "-p", "cse", "-o", out)
    assert (done.code, done.out) == (1, "")
    assert f"{file}{place}" in done.err and f"error[{code}]" in done.err and "Traceback" not in done.err
    assert not out.exists()


def test_the_place_in_the_model_is_shown_beside_that_in_the_module(stretto: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.mlir").write_text(MODULES["an unknown axis with a location"][0])
    assert (
        "note: it belongs to this line of the model: model.py:3"
        in stretto("opt", tmp_path / "bad.mlir", "-p", "cse").err
    )


def test_without_verification_a_broken_module_is_taken(stretto: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.mlir").write_text(MODULES["an unknown axis"][0])
    done = stretto("opt", tmp_path / "bad.mlir", "-p", "cse", "--no-verify")
    assert done.code == 0 and '"pp"' in done.out


def test_a_closed_stdout_is_no_failure(stretto: Command, module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["opt", str(module), "-p", "cse"]) == 0


def test_files_that_cannot_be_read_or_written_are_named(stretto: Command, module: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.mlir").write_bytes(b"\xff")
    for file, code in (("missing.mlir", "E0507"), ("latin.mlir", "E0507"), (".", "E0509")):
        done = stretto("opt", tmp_path / file, "-p", "cse")
        assert done.code == 1 and f"error[{code}]" in done.err and str(tmp_path / file) in done.err
    for out in (tmp_path / "none" / "out.mlir", tmp_path):
        done = stretto("opt", module, "-p", "cse", "-o", out)
        assert (done.code, done.out) == (1, "") and "error[E0508]" in done.err and str(out) in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin.mlir", "module.mlir"]


def test_an_interrupt_leaves_no_half_written_file(
    stretto: Command, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Path, text: str, **how: object) -> int:
        self.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupt)
    assert stretto("opt", module, "-p", "cse", "-o", tmp_path / "out.mlir").code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["module.mlir"]


def test_a_pass_to_print_after_must_be_one_that_runs(stretto: Command, module: Path) -> None:
    done = stretto("opt", module, "-p", "cse,canonicalize", "--print-after=canonicalise")
    assert done.code == 1 and "error[E0417]" in done.err and 'did you mean "canonicalize"' in done.err


def test_wrong_usage_exits_with_2(stretto: Command, module: Path) -> None:
    done = stretto("opt", module)
    assert done.code == 2 and "-p PIPELINE" in done.err


def test_remarks_are_printed_with_their_places_and_are_structured_in_json(
    stretto: Command, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path, monkeypatch)
    module.write_text(LOCATED)
    done = stretto("opt", module, "-p", "do-harm", "--remarks")
    assert done.code == 0
    assert done.err == "model.py:3: applied[do-harm]: now min over tp (in a.b)\n"
    [report] = json.loads(stretto("opt", module, "-p", "do-harm", "--json").out)["passes"]
    assert report["remarks"] == [
        {
            "pass": "do-harm", "kind": "applied", "message": "now min over tp", "file": "model.py", "line": 3,
            "module_path": "a.b",
        }
    ]  # fmt: skip


def test_places_in_a_module_without_locations_are_those_of_its_file(
    stretto: Command, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for verified in ((), ("--no-verify",)):
        done = stretto("opt", "module.mlir", "-p", "do-harm", "--remarks", "-o", "out.mlir", *verified)
        assert (done.code, done.err) == (0, "module.mlir:3: applied[do-harm]: now min over tp\n")
    assert stretto("opt", "out.mlir", "-p", "do-harm", "--remarks").err.startswith("module.mlir:3: ")
    Path("module.mlir").write_text(MODULE.replace('axes = ["tp"]', 'axes = ["pp"]'))
    refused = stretto("verify", "module.mlir", "-p", "cse").err
    assert refused.startswith("module.mlir:3:8: error[E0505]") and "line of the model" not in refused


FAILING = {"do-harm{raises=true}": "OfItsOwn: no such thing", "do-harm{axes=pp}": 'the mesh has no axis "pp"'}


@pytest.mark.parametrize("failing", FAILING)
def test_a_reproducer_holds_the_pass_that_fails_and_its_module(
    failing: str, stretto: Command, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path, monkeypatch)
    file = tmp_path / "fails.mlir"
    first = shown(stretto, "opt", module, "-p", f"canonicalize,{failing},cse", "--reproducer", file)
    assert FAILING[failing] in first and str(file) in first
    text = file.read_text()
    assert text.startswith("// do-harm: ") and f"\n// pipeline: {failing}\n" in text
    again = shown(stretto, "opt", file)
    assert FAILING[failing] in again and "--reproducer" in again
    assert stretto("opt", file, "-p", "cse").code == 0
    assert "do-harm" in stretto("bisect", file).out


def test_a_reproducer_is_not_written_where_no_pass_fails(stretto: Command, module: Path, tmp_path: Path) -> None:
    assert stretto("opt", module, "-p", "cse", "--reproducer", tmp_path / "none.mlir").code == 0
    assert not (tmp_path / "none.mlir").exists()


def shown(stretto: Command, *arguments: object) -> str:
    """What a user sees of a command that fails: its stderr, or what Python prints of an internal error."""
    try:
        done = stretto(*arguments)
    except PassFailure as failure:
        return "\n".join([*getattr(failure, "__notes__", ()), str(failure), stretto.err()])
    assert (done.code, done.out) == (1, "") and "error[E0418]" in done.err and "Traceback" not in done.err
    return done.err


def test_a_pass_that_fails_on_a_module_that_was_not_verified_gives_no_traceback(
    stretto: Command, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path, monkeypatch)
    done = stretto("opt", module, "-p", "do-harm{raises=true}", "--no-verify")
    assert (done.code, done.out) == (1, "") and "error[E0419]" in done.err and "without --no-verify" in done.err


@pytest.mark.parametrize("text", FORMS)
def test_malformed_modules_give_no_traceback_without_verification(text: str, stretto: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.mlir").write_text(text)
    for pipeline in ("fold-layers", "propagate-placements,partition-tensors", "start-collectives"):
        assert stretto("opt", tmp_path / "bad.mlir", "-p", pipeline, "--no-verify").code in (0, 1)


@pytest.fixture(scope="module")
def dump(sources: Path) -> Path:
    """What `--dump-ir` wrote of the GPT, beside the program folder."""
    before = os.getcwd()
    os.chdir(sources)
    try:
        Path("dump").mkdir()
        (Path("dump") / "42-stale.mlir").write_text("an earlier dump")
        (Path("dump") / "notes.txt").write_text("mine")
        command = ["compile", "model.py:make", "--plan", "gpt.plan", "-o", "dumped", "--dump-ir", "dump"]
        assert cli.main(command) == 0
    finally:
        os.chdir(before)
    return sources / "dump"


def test_a_dump_has_a_file_for_every_pass(dump: Path) -> None:
    names = [file.stem for file in sorted(dump.glob("*.mlir"))]
    passes = [line.strip(",").split("{")[0] for line in (dump / "pipeline.txt").read_text().splitlines()]
    assert names == [f"{number:02}-{name}" for number, name in enumerate(["captured", *passes])]
    assert (dump / "notes.txt").exists()


def test_opt_repeats_a_whole_compile_pass_by_pass_from_its_files(
    stretto: Command, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dump.parent)
    files = sorted(dump.glob("*.mlir"))
    passes = [line.strip(",") for line in (dump / "pipeline.txt").read_text().splitlines()]
    for before, pipeline, after in zip(files[:-1], passes, files[1:], strict=True):
        done = stretto("opt", before, "-p", pipeline)
        assert done.code == 0, done.err
        assert done.out == after.read_text(), f"{after.name} is not what opt makes of {before.name}"
    assert files[-1].read_text() == (dump.parent / "dumped" / "ir.mlir").read_text()


def test_a_dump_and_its_pipeline_make_the_compile_at_once(
    stretto: Command, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dump.parent)
    done = stretto("opt", dump / "00-captured.mlir", "-p", (dump / "pipeline.txt").read_text())
    assert done.out == sorted(dump.glob("*.mlir"))[-1].read_text()
