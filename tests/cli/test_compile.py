"""`stretto compile`: the files it writes, its output, and errors, which leave no files."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto import cli
from stretto.frontend.graph import expand_random_ops
from stretto.ir.module import Module
from stretto.passes.base import Report
from stretto.passes.layers.fold_layers import FoldLayers
from stretto.passes.manager import PassFailure
from stretto.runtime import Program

from .conftest import MODEL, PLAN, Command


def test_a_summary_says_what_was_made_and_where(stretto: Command, sources: Path, tmp_path: Path) -> None:
    done = stretto("compile", sources / "model.py:make", "--plan", sources / "gpt.plan", "-o", tmp_path / "p")
    assert done.code == 0
    words = {line.split()[0]: line for line in done.out.splitlines()}
    assert words["mesh"].endswith("(dp=2, tp=2): 4 ranks")
    assert "13 sharded, 9 replicated" in words["parameters"]
    assert "over" in words["communication"] and "sent by each rank" in words["communication"]
    assert "capture" in words["seconds"]
    assert str(tmp_path / "p") in words["program"]
    assert "the model's file prints" not in done.out
    assert Program.load(tmp_path / "p").manifest.dtype == "float32"


def test_the_manifest_says_where_the_model_came_from(program: Path, sources: Path) -> None:
    manifest = Program.load(program).manifest
    assert (manifest.mode, manifest.dtype) == ("train", "float64")
    assert manifest.source["path"] == str(sources / "model.py") and manifest.source["name"] == "make"
    assert manifest.source["sha256"] == hashlib.sha256(MODEL.encode()).hexdigest()
    assert manifest.arguments["inputs"] == {
        "tokens": {"high": 40},
        "targets": {"high": 40, "ignore_index": -100},
    }


def test_a_program_that_was_compared_with_nothing_says_so(program: Path) -> None:
    assert Program.load(program).manifest.checked == {"result": "not checked"}


def test_a_compile_can_compare_the_program_with_eager_pytorch(stretto: Command, sources: Path, tmp_path: Path) -> None:
    target = sources / "model.py:make"
    done = stretto("compile", target, "--plan", sources / "gpt.plan", "-o", tmp_path / "p", "--check")
    line = next(line for line in done.out.splitlines() if line.startswith("check"))
    assert done.code == 0 and line.endswith("equal within 1e-04 (relative); the reference is eager PyTorch")
    record = Program.load(tmp_path / "p").manifest.checked
    assert (record["result"], record["reference"], record["differ"]) == ("passed", "eager PyTorch", [])
    assert "which eager PyTorch agreed with" in stretto("run", tmp_path / "p", "--check").out


def test_a_fault_of_capture_is_found_by_eager_pytorch(
    stretto: Command, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference in the program has the fault too, so that the check with it passes."""
    target = tmp_path / "dropping.py"
    target.write_text(DROPPING)
    (tmp_path / "dp.plan").write_text("mesh (dp=2)\n")
    monkeypatch.setattr(expand_random_ops, "_apply_dropout", _without_the_scale)
    done = stretto("compile", f"{target}:make", "--plan", tmp_path / "dp.plan", "-o", tmp_path / "p", "--check")
    assert done.code == 1 and "check          failed: output 0" in done.out
    assert Program.load(tmp_path / "p").manifest.checked["result"] == "failed"
    assert stretto("run", tmp_path / "p", "--check").code == 0


def _without_the_scale(write: Any, x: Any, p: float, mask: Any) -> Any:
    return write(torch.ops.aten.mul.Tensor, x, mask)


DROPPING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.drop = nn.Linear(6, 8), nn.Dropout(0.25)

    def forward(self, x):
        return self.drop(self.up(x)).pow(2).mean()


def make():
    return Net(), {"x": torch.randn(4, 6)}
"""


def test_a_hugging_face_config_is_a_target_with_batch_and_sequence(llama: Path) -> None:
    program = Program.load(llama)
    assert [tensor.shape for tensor in program.of_kind("input")] == [(2, 8)]
    assert program.manifest.source["architecture"] == "LlamaForCausalLM"


PLANS = {
    "a syntax error": ("mesh (dp=2, tp=2\n", "E0101", "^"),
    "an unknown axis": (PLAN + 'shard "head" vocab over pp\n', "E0107", "^^ expected dp or tp"),
    "a glob that matches nothing": (PLAN + 'shard "*.q_prog" columns over tp\n', "E0114", "q_proj"),
    "a dim out of range": (PLAN + 'shard "embed.weight" dim 2 over tp\n', "E0115", "^^^^^"),
    "an axis used twice": ("mesh (dp=2)\nshard activations tokens over dp\n", "E0112", "^^"),
    "statements that disagree on aliases": (PLAN + 'shard "head" dim 1 over tp\n', "E0117", "head"),
}


@pytest.mark.parametrize("mistake", PLANS)
def test_a_mistake_in_the_plan_is_shown_at_its_place(
    mistake: str, stretto: Command, sources: Path, tmp_path: Path
) -> None:
    text, code, shown = PLANS[mistake]
    (tmp_path / "bad.plan").write_text(text)
    done = stretto("compile", sources / "model.py:make", "--plan", tmp_path / "bad.plan", "-o", tmp_path / "p")
    assert (done.code, done.out) == (1, "")
    assert f"error[{code}]" in done.err and shown in done.err and f"{tmp_path / 'bad.plan'}:" in done.err
    assert "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.plan"]


TARGETS = {
    "missing.py:make": "E0202",
    "model.py:mak": "E0203",
    "model.py:make_nothing": "E0205",
    "model.py": "E0201",
    "hf:missing": "E0206",
    "model.py:make_three_rows": "E0401",
    "model.py:make_branching": "E0220",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_cannot_be_compiled_is_refused(
    target: str, stretto: Command, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sources)
    done = stretto("compile", target, "--plan", "gpt.plan", "-o", tmp_path / "p")
    assert (done.code, done.out) == (1, "")
    assert f"error[{TARGETS[target]}]" in done.err and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_branch_on_data_is_shown_with_its_line(stretto: Command, sources: Path, tmp_path: Path) -> None:
    target = f"{sources / 'model.py'}:make_branching"
    done = stretto("compile", target, "--plan", sources / "gpt.plan", "-o", tmp_path / "p")
    line = 1 + MODEL.splitlines().index("        if loss > 1:")
    assert f"model.py:{line}:" in done.err and "if loss > 1:" in done.err


def test_a_batch_that_does_not_divide_is_refused_with_its_size(stretto: Command, sources: Path, tmp_path: Path) -> None:
    target = f"{sources / 'model.py'}:make_three_rows"
    done = stretto("compile", target, "--plan", sources / "gpt.plan", "-o", tmp_path / "p")
    assert "3 rows" in done.err and "multiple of 2" in done.err


def test_a_folder_that_is_no_program_is_left_as_it_is(stretto: Command, sources: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    done = stretto("compile", sources / "model.py:make", "--plan", sources / "gpt.plan", "-o", tmp_path / "mine")
    assert done.code == 1 and "error[E0307]" in done.err
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["mine", "mine/letter.txt"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compile"],
        ["compile", "model.py:make", "-o", "p"],
        ["compile", "model.py:make", "--plan", "x", "-o", "p", "--mode", "test"],
        ["compile", "hf:x", "--plan", "x", "-o", "p", "--batch", "0"],
        ["compile", "model.py:make", "--plan", "x", "-o", "p", "--batch", "2"],
        ["run", "p", "--steps", "0"],
        ["explain"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], stretto: Command) -> None:
    done = stretto(*arguments)
    assert done.code == 2 and done.out == "" and done.err.startswith("usage: stretto")


def test_the_version_names_what_it_runs_on(stretto: Command) -> None:
    done = stretto("--version")
    assert done.code == 0 and done.out.startswith("stretto 0.") and "torch" in done.out


@pytest.mark.parametrize("package", ["torch_mlir", "lark", "networkx"])
def test_without_the_compiler_the_command_that_installs_it_is_named(
    package: str, stretto: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = stretto("compile", "model.py:make", "--plan", "x", "-o", "p")
    assert done.code == 1 and "error[E0501]" in done.err and package in done.err
    assert 'pip install "stretto[compiler]"' in done.err


def test_an_internal_error_keeps_its_traceback_and_says_how_to_report_it(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*unused: object, **options: object) -> None:
        raise AssertionError("two slots for one value")

    monkeypatch.setattr("stretto.driver.compile.compile_target.explain", broken)
    arguments = ["compile", f"{sources / 'model.py'}:make", "--plan", str(sources / "gpt.plan")]
    monkeypatch.setattr("stretto.driver.compile.compile_target.compile_program", broken)
    with pytest.raises(AssertionError, match="two slots") as caught:
        cli.main([*arguments, "-o", str(tmp_path / "p")])
    assert "Please report it" in caught.value.__notes__[-1]
    assert not list(tmp_path.iterdir())


def test_an_interruption_while_writing_leaves_nothing_behind(
    stretto: Command, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("stretto.runtime.program.folder.sha256_of", interrupted)
    done = stretto("compile", sources / "model.py:make", "--plan", sources / "gpt.plan", "-o", tmp_path / "p")
    assert (done.code, done.out) == (130, "") and done.err.splitlines()[-1] == "stretto: interrupted"
    assert not list(tmp_path.iterdir())


def test_a_program_is_replaced_by_the_next_one(stretto: Command, llama: Path, sources: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for path in llama.iterdir():
        (tmp_path / "p" / path.name).write_bytes(path.read_bytes())
    done = stretto("compile", sources / "model.py:make", "--plan", sources / "gpt.plan", "-o", tmp_path / "p")
    assert done.code == 0
    assert json.loads((tmp_path / "p" / "manifest.json").read_text())["mode"] == "train"


def test_a_pass_that_fails_in_a_compile_can_be_found_again_from_its_dump(
    stretto: Command, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FoldLayers, module: Module) -> Report:
        raise ZeroDivisionError("by nothing")

    monkeypatch.chdir(sources)
    monkeypatch.setattr(FoldLayers, "run", fail)
    dump = tmp_path / "ir"
    with pytest.raises(PassFailure, match='pass "fold-layers" failed: ZeroDivisionError') as caught:
        stretto("compile", "model.py:make", "--plan", "gpt.plan", "-o", tmp_path / "p", "--dump-ir", dump)
    assert any("--dump-ir DIR" in note and "fold-layers" in note for note in caught.value.__notes__)
    assert not (tmp_path / "p").exists()
    assert '"fold-layers" is the first pass that fails' in stretto("bisect", dump).out


def test_the_summary_is_json_where_json_was_asked_for(stretto: Command, sources: Path, tmp_path: Path) -> None:
    where = tmp_path / "p"
    done = stretto("compile", sources / "model.py:make", "--plan", sources / "gpt.plan", "-o", where, "--json")
    report = json.loads(done.out)
    assert (report["program"], report["warnings"]) == (str(where), [])
    assert report["explanation"]["hash"] == Program.load(where).hash
    assert set(report["seconds"]) >= {"capture", "passes", "save"}


@pytest.mark.parametrize("where", ["file/program", "n" * 300])
def test_a_folder_that_cannot_be_written_is_said_before_the_compile(
    where: str, stretto: Command, sources: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = stretto("compile", sources / "none.py:make", "--plan", sources / "gpt.plan", "-o", tmp_path / where)
    assert done.code == 1
    assert f"error[E0508]: '{tmp_path / where}' cannot be written: " in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["import sys\ndef make():\n    sys.exit(0)\n", "import sys\nsys.exit(0)\n"])
def test_a_target_that_exits_is_an_error(text: str, stretto: Command, sources: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(text)
    done = stretto("compile", tmp_path / "script.py:make", "--plan", sources / "gpt.plan", "-o", tmp_path / "p")
    assert done.code == 1
    assert "error[E0204]" in done.err and "raises SystemExit: 0" in done.err and "__main__" in done.err


def test_a_schedule_that_does_not_exist_is_said_before_the_model_is_loaded(
    stretto: Command, sources: Path, tmp_path: Path
) -> None:
    (tmp_path / "pp.plan").write_text("mesh (pp=2)\npipeline over pp { schedule 1fb1  microbatches 4 }\n")
    done = stretto("compile", sources / "none.py:make", "--plan", tmp_path / "pp.plan", "-o", tmp_path / "p")
    assert done.code == 1
    assert "pp.plan:2:20: error[E0440]" in done.err and 'did you mean "1f1b"?' in done.err


def test_a_command_that_takes_long_says_what_it_does(
    stretto: Command, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_SILENCE_S", 0.05)
    done = stretto("compile", sources / "model.py:make", "--plan", sources / "gpt.plan", "-o", tmp_path / "p")
    assert re.search(r"stretto compile: at work for \d+ s: (capture|backward|passes)", done.err)
