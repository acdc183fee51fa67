"""A model compiled as several entries: one folder, one set of parameters and states, run by a script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stretto
import torch
from stretto import cli
from stretto.runtime.errors import ProgramError, RunError
from stretto.runtime.named_entries.program_set import ProgramSet
from torch import Tensor

from .test_static_cache import BATCH, LENGTH, TP, Decoder, cache_of, full_logits, llama, random_tokens

ROOT = Path(__file__).parents[2]
PROMPT, TOKENS = 8, 16

MODEL = """
import torch
from torch import nn

class Notes(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.register_buffer("notes", torch.randn(5, 6))

    def forward(self, x, position):
        self.notes.index_copy_(0, position, self.up(x).tanh())
        return self.notes.sum(0)

    def write(self, x, position):
        return self(x, position) * 2

    def read(self):
        return self.notes @ self.up.weight

def notes():
    torch.manual_seed(0)
    model = Notes()
    return model, {
        "write": (model.write, {"x": torch.randn(2, 4), "position": torch.tensor([0, 4])}),
        "read": (model.read, {}),
    }

def all_of_notes():
    model, entries = notes()
    return model, {
        **entries,
        "forward": (model, {"x": torch.randn(1, 4), "position": torch.tensor([1])}),
        "twice": (lambda x: model(x, torch.tensor([2])) * 2, {"x": torch.randn(1, 4)}),
    }
"""
CLUSTER = 'cluster { nodes 1  gpus 2  gpu "A100-SXM-80GB"  network 25GB/s }'
PLAN = 'mesh (tp=2)\nshard "up" columns over tp\nshard buffers "notes" dim 1 over tp\n'

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; its exit code, output and diagnostics."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(each) for each in arguments])
        return (code, *capsys.readouterr())

    return command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "notes.plan").write_text(PLAN)
    return tmp_path


def compiled(run: Run, folder: Path, *options: str, target: str = "notes") -> tuple[int, str, str]:
    target, plan = f"{folder}/model.py:{target}", folder / "notes.plan"
    return run("compile", target, "--plan", plan, "-o", folder / "p", "--mode", "infer", "--dtype", "float64", *options)


def eager_notes() -> torch.nn.Module:
    namespace: dict[str, Any] = {}
    exec(MODEL, namespace)
    model: torch.nn.Module = namespace["notes"]()[0].double()
    return model


def test_methods_of_a_model_are_entries_of_one_program_and_change_one_state(run: Run, folder: Path) -> None:
    code, out, _ = compiled(run, folder, "--states", "notes")
    assert code == 0 and [line.split()[1] for line in out.splitlines() if line.startswith("entry")] == ["write", "read"]
    assert out.count("seconds") == out.count("program ") == 1
    model: Any = eager_notes()
    x, at = torch.randn(2, 4, dtype=torch.float64), torch.tensor([3, 1])
    with stretto.load_program(folder / "p") as program, torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            program.tensors[name].copy_(tensor)
        torch.testing.assert_close(program.run("write", x=x, position=at)[0], model.write(x, at), rtol=0, atol=1e-12)
        torch.testing.assert_close(program.run("read")[0], model.read(), rtol=0, atol=1e-12)
        assert program.copied_state_bytes == 0
        torch.testing.assert_close(program.full_tensor("notes"), model.notes, rtol=0, atol=1e-12)

    code, out, _ = run("verify", folder / "p", "--range", "position=0:5")
    assert code == 0 and out.count("safe: 2 ranks") == 2 and "entry read" in out
    assert out.count("are those of the program's module") == 2
    assert [*json.loads(run("explain", folder / "p", "--json")[1])["entries"]] == ["write", "read"]
    assert run("verify", folder / "p", "--entry", "read")[1].count("safe") == 1
    code, out, _ = run("run", folder / "p", "--entry", "read", "--steps", "1")
    assert code == 0 and "median step" in out
    code, _, err = run("run", folder / "p")
    assert code == 1 and "E0319" in err and "write, read" in err
    assert "has no entry 'reed'" in run("explain", folder / "p", "--entry", "reed")[2]
    assert run("diff", folder / "p", folder / "p", "--entry", "read")[0] == 0


@pytest.mark.slow
def test_the_forward_and_functions_are_entries_too_and_sizes_are_those_of_the_call(run: Run, folder: Path) -> None:
    (folder / "notes.cluster").write_text(CLUSTER)
    dynamic = [f"write.{name}=rows:2..5" for name in ("x", "position")]
    options = [word for text in dynamic for word in ("--dynamic", text)]
    code, out, _ = compiled(run, folder, "--states", "notes", *options, target="all_of_notes")
    assert code == 0 and out.count("sizes  ") == 1
    model: Any = eager_notes()
    with stretto.load_program(folder / "p") as program, torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            program.tensors[name].copy_(tensor)
        for rows in (2, 3, 5, 3):
            x, at = torch.randn(rows, 4, dtype=torch.float64), torch.randperm(5)[:rows]
            calls: list[tuple[str, dict[str, Tensor], Callable[[], Tensor]]] = [
                ("write", {"x": x, "position": at}, lambda x=x, at=at: model.write(x, at)),
                ("forward", {"x": x[:1], "position": at[:1]}, lambda x=x, at=at: model(x[:1], at[:1])),
                ("twice", {"x": x[1:2]}, lambda x=x: model(x[1:2], torch.tensor([2])) * 2),
                ("read", {}, model.read),
            ]
            for entry, inputs, eager in calls:
                torch.testing.assert_close(program.run(entry, **inputs)[0], eager(), rtol=0, atol=1e-12, msg=entry)
        assert program.copied_state_bytes == 0
        with pytest.raises(ProgramError, match=r"rows = 9 is outside of 2\.\.5"):
            program.run("write", x=torch.zeros(9, 4).double(), position=torch.arange(9))
        with pytest.raises(RunError) as caught:
            program.run("write", x=torch.zeros(3, 4).double(), position=torch.arange(2))
        assert caught.value.code == "E0311"
    code, out, err = run("simulate", folder / "p", "--entry", "twice", "--cluster", folder / "notes.cluster")
    assert code == 0 and "step" in out, err
    assert "E0319" in run("simulate", folder / "p", "--cluster", folder / "notes.cluster")[2]


def test_what_no_entry_has_is_refused(run: Run, folder: Path) -> None:
    code, _, err = compiled(run, folder, "--states", "note")
    assert code == 1 and "E0424" in err and not (folder / "p").exists()
    target = f"{folder}/model.py:notes"
    for command in (("verify", target, "--plan", folder / "notes.plan"), ("doctor", target)):
        code, _, err = run(*command)
        assert code == 1 and "E0229" in err and f'write "{target}.write"' in err
    code, _, err = run("verify", f"{target}.wrote", "--plan", folder / "notes.plan")
    assert code == 1 and "E0229" in err and '"write"' in err


FUSED = """
import torch
from torch import nn

class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).split(8, -1)
        return self.o((q @ k.mT).softmax(-1) @ v)

    def projected(self, x):
        return self.qkv(x)

def fused():
    model = Fused()
    x = {"x": torch.randn(2, 3, 8)}
    return model, {"all": (model, x), "one": (model.projected, x)}
"""


@pytest.mark.slow
def test_a_projection_that_one_entry_cuts_in_blocks_and_another_does_not_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FUSED)
    (tmp_path / "tp.plan").write_text('mesh (tp=2)\nshard "qkv" columns over tp\nshard "o" rows over tp\n')
    target, plan = f"{tmp_path}/model.py:fused", tmp_path / "tp.plan"
    code, _, err = run("compile", target, "--plan", plan, "-o", tmp_path / "p", "--mode", "infer")
    assert code == 1 and "E0316" in err and not (tmp_path / "p").exists()
    assert "dim 0 over tp in blocks of 8, 8, 8; in 'one' a parameter, float32 [24, 8], dim 0 over tp" in err


@pytest.mark.slow
def test_a_plan_whose_entries_are_checked_one_by_one(run: Run, folder: Path) -> None:
    code, out, _ = compiled(run, folder, "--check", target="all_of_notes")
    assert code == 0 and out.count("check          passed") == 4
    target = f"{folder}/model.py:notes"
    code, out, _ = run("run", folder / "p", "--entry", "write", "--check", "--against", target)
    assert code == 0 and f"the uncompiled model {target}.write" in out


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_the_example_decodes_from_its_folder_as_the_model_does(run: Run, tmp_path: Path, processes: int) -> None:
    example = ROOT / "examples" / "decoding.py"
    plan = ROOT / "examples" / "plans" / "decoding.plan"
    states = ("--states", "*.keys", "--states", "*.values")
    options = ("--mode", "infer", "--dtype", "float64", *states)
    assert run("compile", f"{example}:llama", "--plan", plan, "-o", tmp_path / "p", *options)[0] == 0
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path / "p"), examples=str(example.parent)))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes else []
    done = subprocess.run([sys.executable, *launch, script], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        report = json.loads(line)
        assert report["error"] < 1e-9 and report["cache"] < 1e-9
        assert report["copied"] == 0 and report["kept"] and not report["compiler"]
    assert len(done.stdout.splitlines()) == max(processes, 1)


SCRIPT = """
import json, sys
import torch
sys.path.insert(0, {examples!r})
torch.set_default_dtype(torch.float64)
import stretto
import decoding as d

def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

def memory(tensor):
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).data_ptr()

torch.manual_seed(0)
model = d.Llama()
tokens = torch.randint(0, d.VOCABULARY, (d.BATCH, d.LENGTH), generator=torch.Generator().manual_seed(1))
with stretto.load_program({folder!r}) as program, torch.no_grad():
    names = [name for name in program.tensors if name.endswith(("keys", "values"))]
    before = [memory(program.tensors[name]) for name in names]
    expected = model(tokens, torch.arange(d.LENGTH))
    found = [whole(program.run("prefill", tokens=tokens[:, :d.PROMPT])[0])]
    for i in range(d.PROMPT, d.LENGTH):
        found.append(whole(program.run("decode", token=tokens[:, i:i + 1], position=torch.tensor([i]))[0]))
    buffers = dict(model.named_buffers())
    report = {{
        "error": float((torch.cat(found, 1) - expected[:, d.PROMPT - 1:]).abs().max()),
        "cache": max(float((program.full_tensor(name) - buffers[name]).abs().max()) for name in names),
        "copied": program.copied_state_bytes,
        "kept": before == [memory(program.tensors[name]) for name in names],
        "compiler": any(name.startswith(("torch_mlir", "stretto.passes")) for name in sys.modules),
    }}
    print(json.dumps(report) + "\\n", end="", flush=True)
"""


@pytest.mark.slow
def test_hugging_faces_cache_is_shared_by_the_prompt_and_the_tokens_of_a_folder(tmp_path: Path) -> None:
    model, tokens = Decoder(llama()), random_tokens()
    cache = cache_of(model.model)
    expected = full_logits(model.model, tokens)
    view = stretto.compile(model, plan=TP, states=["cache*"])
    with torch.no_grad():
        view(tokens[:, :PROMPT], torch.tensor(0), cache)
        programs = {"prefill": stretto.program_of(view)}
        view(tokens[:, :1], torch.tensor(0), cache)
        programs["decode"] = stretto.program_of(view)
    for layer in cache.layers:
        layer.keys.zero_(), layer.values.zero_(), layer.cumulative_length.zero_()
    stretto.save_programs(tmp_path / "p", programs, view, objects={"cache": cache})
    assert list(ProgramSet.load(tmp_path / "p").programs) == ["prefill", "decode"]
    with stretto.load_program(tmp_path / "p") as program, torch.no_grad():
        found = program.run("prefill", tokens=tokens[:, :PROMPT], position=torch.tensor(0))
        for i in range(PROMPT, PROMPT + TOKENS):
            found += program.run("decode", tokens=tokens[:, i : i + 1], position=torch.tensor(i))
        lengths = 2 * 8 * (2 + TOKENS)
        assert program.copied_state_bytes <= lengths, "the lengths of two layers, and no keys or values"
    assert program.tensors["cache.layers.0.keys"].shape == (BATCH, 2, LENGTH, 4)
    torch.testing.assert_close(torch.cat(found, 1), expected[:, : PROMPT + TOKENS], rtol=0, atol=1e-9)
