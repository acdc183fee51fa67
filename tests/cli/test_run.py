"""`stretto run`: steps, checks against the live model, broken programs, processes, interruption."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stretto.runtime import Program

from .conftest import MODEL, Command, compiled


def test_training_prints_a_falling_loss_and_how_fast_it_was(stretto: Command, program: Path) -> None:
    done = stretto("run", program, "--steps", 4)
    lines = done.out.splitlines()
    losses = [float(line.split()[3]) for line in lines[:4]]
    assert done.code == 0 and [line.split()[:3] for line in lines[:4]] == [
        ["step", str(n), "loss"] for n in range(1, 5)
    ]
    assert losses == sorted(losses, reverse=True)
    assert "tokens/s" in lines[4] and "4 ranks as threads" in lines[4]


def test_a_trace_has_the_instructions_of_each_rank(stretto: Command, program: Path, tmp_path: Path) -> None:
    done = stretto("run", program, "--steps", 1, "--trace", tmp_path / "steps.json")
    events = json.loads((tmp_path / "steps.json").read_text())["traceEvents"]
    assert done.code == 0 and {event["pid"] for event in events} == {0, 1, 2, 3}
    assert any("model.py" in event["args"].get("place", "") for event in events)
    refused = stretto("run", program, "--check", "--trace", tmp_path / "steps.json")
    assert refused.code == 2 and "stretto.trace(FILE) is for both" in refused.err


def test_inference_has_no_loss(stretto: Command, llama: Path) -> None:
    done = stretto("run", llama, "--json", "--steps", 2)
    report = json.loads(done.out)
    assert (
        report["mode"] == "infer" and report["losses"] == [] and len(report["seconds"]) == 2 and report["tokens"] == 16
    )


def test_a_check_of_a_folder_executes_nothing_of_its_author(stretto: Command, program: Path) -> None:
    done = stretto("run", program, "--check")
    assert done.code == 0 and "the exported forward in the program (never compared with eager PyTorch" in done.out
    assert "--against TARGET" in done.out and "the model's file prints" not in done.err


def test_a_check_against_a_target_runs_the_uncompiled_model(stretto: Command, program: Path, sources: Path) -> None:
    done = stretto("run", program, "--check", "--json", "--against", f"{sources / 'model.py'}:make")
    report = json.loads(done.out)
    assert done.code == 0 and report["passed"] and report["tolerance"] == 1e-9 and report["steps"] == 3
    assert report["reference"]["live"] and "model.py" in report["reference"]["what"]
    kinds = {row["kind"] for row in report["rows"]}
    assert kinds == {"output", "gradient", "parameter", "weights"}
    assert max(row["error"] for row in report["rows"] if row["verdict"] == "equal") < 1e-9
    assert "the model's file prints" in done.err, "and not on stdout"


def test_a_hugging_face_model_is_checked_live(stretto: Command, llama: Path, sources: Path) -> None:
    report = json.loads(stretto("run", llama, "--check", "--against", f"hf:{sources / 'llama.json'}", "--json").out)
    assert report["passed"] and report["reference"]["live"]
    assert {row["kind"] for row in report["rows"]} == {"output", "weights"}


def test_a_target_that_has_changed_since_is_said_to_have(
    stretto: Command, sources: Path, program: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model.py"
    copy.write_text((sources / "model.py").read_text() + "\n# changed\n")
    done = stretto("run", program, "--check", "--against", f"{copy}:make")
    assert done.code == 0 and f"the uncompiled model {copy}:make, whose file is not the one" in done.out
    assert done.out.splitlines()[-1].startswith("passed: ")
    copy.write_text((sources / "model.py").read_text().replace("x + self.o_proj", "x - self.o_proj"))
    done = stretto("run", program, "--check", "--against", f"{copy}:make")
    assert done.code == 1 and done.out.splitlines()[-1].startswith("failed: ")


def test_a_target_without_weights_cannot_be_checked_against(
    stretto: Command, sources: Path, program: Path, tmp_path: Path
) -> None:
    shapes = tmp_path / "shapes.py"
    shapes.write_text(
        "import torch\nfrom torch._subclasses.fake_tensor import FakeTensorMode\n"
        + MODEL.replace(
            'return GPT(), {"tokens": tokens(4), "targets"', 'return fake(), {"tokens": tokens(4), "targets"'
        )
        + "\n\ndef fake():\n    with FakeTensorMode():\n        return GPT()\n"
    )
    done = stretto("run", program, "--check", "--against", f"{shapes}:make")
    assert (done.code, done.out) == (1, "") and "error[E0348]" in done.err


def test_against_is_for_checks_alone(stretto: Command, program: Path) -> None:
    done = stretto("run", program, "--against", "model.py:make")
    assert done.code == 2 and "add --check" in done.err


@pytest.mark.slow
def test_a_16_bit_program_is_judged_by_the_error_of_eager_mode(stretto: Command, sources: Path, tmp_path: Path) -> None:
    arguments = ("--plan", sources / "gpt.plan", "-o", tmp_path / "p", "--dtype", "bfloat16")
    assert stretto("compile", f"{sources / 'model.py'}:make", *arguments).code == 0
    done = stretto("run", tmp_path / "p", "--check", "--json")
    report = json.loads(done.out)
    assert done.code == 0 and report["passed"] and report["verdict"] == "passed", done.out
    assert report["criterion"] == "within 4 times the error of eager bfloat16 against float64"
    assert {row["verdict"] for row in report["rows"]} <= {"equal", "not checked"}


def wrong(program: Path, folder: Path) -> Path:
    """The program with another reduction in the layers: the largest instead of the sum."""
    loaded = Program.load(program)
    functions = dict(loaded.functions)
    for name, function in functions.items():
        for index, instruction in enumerate(function.code):
            if instruction.op == "comm.all_reduce_start" and instruction.kwargs["axes"] == ["tp"] and name != "main":
                code = list(function.code)
                code[index] = replace(instruction, kwargs={**instruction.kwargs, "reduce": "max"})
                functions[name] = replace(function, code=tuple(code))
                replace(loaded, functions=functions, initial=dict(loaded.weights)).save(folder)
                return folder
    raise AssertionError("no layer reduces")


def test_a_wrong_program_fails_its_check(stretto: Command, program: Path, tmp_path: Path) -> None:
    folder = wrong(program, tmp_path / "p")
    done = stretto("run", folder, "--check")
    assert done.code == 1 and done.err.count("error[") == 0
    assert done.out.splitlines()[-1].startswith("failed: ") and "differs" in done.out
    done = stretto("run", folder, "--check", "--json")
    assert done.code == 1 and not json.loads(done.out)["passed"]


def copied(program: Path, tmp_path: Path) -> Path:
    shutil.copytree(program, tmp_path / "p")
    return tmp_path / "p"


@pytest.mark.parametrize("command", ["run", "explain"])
def test_an_altered_program_is_refused(command: str, stretto: Command, program: Path, tmp_path: Path) -> None:
    folder = copied(program, tmp_path)
    text = (folder / "program.json").read_text()
    (folder / "program.json").write_text(text.replace('"sum"', '"max"', 1))
    done = stretto(command, folder, "--json")
    assert done.code == 1 and json.loads(done.out)["error"]["code"] == "E0303" and "error[E0303]" in done.err


def test_a_truncated_program_is_refused(stretto: Command, program: Path, tmp_path: Path) -> None:
    folder = copied(program, tmp_path)
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-8])
    assert "error[E0303]" in stretto("run", folder).err
    (folder / "program.json").unlink()
    assert "error[E0302]" in stretto("run", folder).err
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-40])
    assert "error[E0302]" in stretto("run", folder).err


def test_a_program_of_a_newer_format_is_refused(stretto: Command, program: Path, tmp_path: Path) -> None:
    folder = copied(program, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    done = stretto("run", folder)
    assert (done.code, done.out) == (1, "") and "error[E0304]" in done.err and "99" in done.err


@pytest.mark.slow
def test_ranks_as_processes_pass_the_check_against_the_live_model(
    stretto: Command, forward: Path, sources: Path
) -> None:
    target = f"{sources / 'model.py'}:make_forward"
    done = stretto("run", forward, "--check", "--against", target, "--ranks", "processes", "--json")
    report = json.loads(done.out)
    assert done.code == 0 and report["passed"] and report["reference"]["live"] and report["ranks_as"] == "processes"


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_ends_quietly_with_130(program: Path) -> None:
    command = [sys.executable, "-c", "import sys; from stretto.cli import main; sys.exit(main())"]
    running = subprocess.Popen(
        [*command, "run", str(program), "--steps", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while threads(running.pid) < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        begun = processor_seconds(running.pid)
        while processor_seconds(running.pid) < begun + 2 and time.monotonic() < deadline:
            time.sleep(0.1)  # the first steps import: Python would lose an interrupt in a callback of an import
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130, err
    assert out == "" and err.splitlines()[-1] == "stretto: interrupted" and "Traceback" not in err


def threads(process: int) -> int:
    """How many threads a process has: the ranks are there once it has more than a few."""
    folder = f"/proc/{process}/task"
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


def processor_seconds(process: int) -> float:
    """The processor time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


LOGARITHM = """
import torch
from torch import nn


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return torch.log(self.down(self.up(x)).square().sum(-1) - 1e6).mean()


def model():
    return Logarithm(), {"x": torch.randn(4, 4)}
"""


def test_a_nan_in_the_loss_is_reported_and_on_request_traced_to_its_operation(stretto: Command, tmp_path: Path) -> None:
    source, plan, folder = tmp_path / "logarithm.py", tmp_path / "my.plan", tmp_path / "program"
    source.write_text(LOGARITHM)
    plan.write_text('mesh (dp=2, tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n')
    assert stretto("compile", f"{source}:model", "--plan", plan, "-o", folder).code == 0
    done = stretto("run", folder, "--steps", 2)
    assert done.code == 0 and "the loss is NaN from step 1 on; --detect-anomaly names" in done.out
    done = stretto("run", folder, "--detect-anomaly")
    assert done.code == 1 and "logarithm.py:12" in done.err and "(aten.log.default)" in done.err


@pytest.fixture(scope="module")
def for_cuda(sources: Path) -> Path:
    """The GPT, compiled for inference on two ranks with GPUs."""
    return compiled(sources, "model.py:make_forward", "two.plan", "cuda", "--mode", "infer", "--target", "cuda")


def test_a_folder_for_cuda_runs_on_the_cpu_by_the_bodies_of_its_regions(stretto: Command, for_cuda: Path) -> None:
    done = stretto("run", for_cuda, "--target", "cpu", "--check")
    assert done.code == 0 and "passed" in done.out
    assert re.search(r"remark: on cpu \d+ functions of kind region run as their bodies, op by op", done.err)
    explained = stretto("explain", for_cuda).out
    assert "for cuda" in explained and "region by its body" in explained and "attention by its body" in explained
    assert "attention by torch's flash attention" in stretto("explain", for_cuda, "--target", "cpu").out


@pytest.mark.parametrize("ranks", ["threads", "processes"])
def test_a_target_without_a_gpu_is_refused_with_what_to_do_instead(
    stretto: Command, for_cuda: Path, forward: Path, ranks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (["run", for_cuda], ["run", forward, "--target", "cuda"]):
        done = stretto(*command, "--ranks", ranks)
        assert done.code == 1 and "error[E0364]" in done.err and "stretto run DIR --target cpu" in done.err


@pytest.mark.slow
def test_a_check_says_on_which_target_it_was_made(stretto: Command, sources: Path) -> None:
    options = ("--mode", "infer", "--target", "cuda", "--check")
    folder = compiled(sources, "model.py:make_forward", "two.plan", "checked_cuda", *options)
    assert Program.load(folder).manifest.checked["targets"] == ["cpu"]
    assert "for cuda; checked on cpu" in stretto("explain", folder).out
