"""`stretto doctor`: layers are paired by which feeds which, and the starting plan is right for every example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stretto
import torch
from stretto.cli import main
from stretto.driver.compile.compile_target import CompileJob, compile_target
from stretto.driver.doctor.diagnosis import Diagnosis, DoctorJob, diagnose
from stretto.runtime.checks.program_check import check

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
FILES = {
    "gpt": "targets.py:gpt",
    "dit": "models/dit.py:dit",
    "unet": "models/unet.py:unet",
    "resnet": "models/resnet.py:resnet",
    "translator": "models/translator.py:translator",
}
QUICK = ("gpt",)
CONFIGS = ("llama", "gpt2", "qwen2", "mixtral", "mixtral_grouped", "bert", "vit")

SCRIPT = '''
import torch
from torch import nn
from torch.nn import functional as F


class Chain(nn.Module):
    """Four layers, each feeding the next."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))).square().mean()


class Gated(nn.Module):
    """A layer whose input is a norm's result, changed by another layer; a norm over heads between two layers."""

    def __init__(self):
        super().__init__()
        self.norm, self.modulation = nn.LayerNorm(8), nn.Linear(8, 8)
        self.fc, self.heads, self.out = nn.Linear(8, 8), nn.LayerNorm(4), nn.Linear(8, 8)

    def forward(self, x):
        h = self.fc(self.norm(x) * self.modulation(x))
        return self.out(self.heads(h.unflatten(-1, (2, 4))).flatten(-2)).square().mean()


class Alike(nn.Module):
    """A hidden size that is the vocabulary's, and numbers in names that mean different things."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)
        self.steps = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)])
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens):
        x = self.norm(self.embed(tokens))
        x = x + self.steps[1](F.gelu(self.steps[0](x)))
        return F.cross_entropy(self.head(self.norm(x + self.steps[2](self.norm(x)))), tokens)


def chain():
    return Chain(), {"x": torch.randn(4, 8)}


def gated():
    return Gated(), {"x": torch.randn(4, 8)}


def alike():
    return Alike(), {"tokens": torch.arange(4)}


def odd():
    return Chain(), {"x": torch.randn(3, 8)}
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of small targets."""
    file = tmp_path_factory.mktemp("doctor") / "small.py"
    file.write_text(SCRIPT)
    return file


def shards(diagnosis: Diagnosis) -> list[str]:
    """The statements of the plan, blanks squeezed."""
    return [" ".join(line.split()) for line in diagnosis.plan.text.splitlines() if line.startswith("shard")]


def test_a_chain_of_layers_is_sharded_in_pairs(script: Path) -> None:
    diagnosis = diagnose(DoctorJob(f"{script}:chain"))
    assert shards(diagnosis) == ['shard "a", "c" columns over tp', 'shard "b", "d" rows over tp']


def test_a_layer_behind_a_mixture_is_no_partner_and_a_norm_over_heads_is_no_mixture(script: Path) -> None:
    diagnosis = diagnose(DoctorJob(f"{script}:gated"))
    assert shards(diagnosis) == ['shard "fc" columns over tp', 'shard "out" rows over tp']
    why = {finding.name: finding.why for finding in diagnosis.findings}
    assert why["modulation.weight"] == "it feeds a layer that has other inputs too, which are not sharded"
    assert why["norm.weight"] == "a vector, such as the scale of a norm"


def test_the_size_of_a_vocabulary_makes_no_head_and_globs_match_what_is_meant(script: Path) -> None:
    diagnosis = diagnose(DoctorJob(f"{script}:alike"))
    assert shards(diagnosis) == [
        'shard "steps.0" columns over tp', 'shard "steps.1" rows over tp', 'shard "embed", "head" vocab over tp'
    ]  # fmt: skip
    assert {finding.name: finding.role for finding in diagnosis.findings}["steps.2.weight"] == ""


@pytest.mark.slow
def test_the_mesh_shares_the_batch_evenly(script: Path) -> None:
    odd = diagnose(DoctorJob(f"{script}:odd"))
    assert "mesh (tp=2)" in odd.plan.text and "dp=1 instead of 2" in odd.note
    assert "mesh (dp=4, tp=2)" in diagnose(DoctorJob(f"{script}:chain", data=4)).plan.text
    plan = diagnose(DoctorJob(f"{EXAMPLES}/{FILES['resnet']}")).plan.text
    assert plan.splitlines()[1:] == ["mesh (dp=4)"]


def test_the_command_shows_names_reasons_and_the_plan_and_writes_it(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, plan = f"{script}:gated", tmp_path / "new.plan"
    assert main(["doctor", target, "-o", str(plan)]) == 0
    shown = capsys.readouterr().out
    assert "modulation.weight" in shown and "2 tensors: it feeds" not in shown
    assert "1 tensor: it feeds a layer that has other inputs too, which are not sharded" in shown
    assert f"stretto compile {target} --plan {plan} -o my_program" in shown
    assert plan.read_text().startswith("# a starting plan for Gated")
    assert main(["doctor", target, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plan"] == plan.read_text() and report["inputs"] == {"x": {"shape": [4, 8], "dtype": "float32"}}


def test_a_wrong_target_is_the_same_error_as_in_compile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nothing.py:here"]) == 1
    assert "error[E02" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["doctor", "nothing.py:here", "--batch", "2"])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in (*FILES, *CONFIGS)]
)
def test_the_starting_plan_of_every_example_compiles_and_checks(name: str, tmp_path: Path) -> None:
    hugging_face = name in CONFIGS
    target = f"hf:{EXAMPLES}/configs/{name}_tiny.json" if hugging_face else f"{EXAMPLES}/{FILES[name]}"
    sizes = {"batch": 4, "seq": None if name == "vit" else 8} if hugging_face else {}
    diagnosis = diagnose(DoctorJob(target, **sizes))
    plan = tmp_path / "starting.plan"
    plan.write_text(diagnosis.plan.text)
    stretto.Plan.load(plan)
    job = CompileJob(target, str(plan), str(tmp_path / "program"), dtype="float64", **sizes)
    report = check(compile_target(job)[0])
    assert report.passed, report
    assert diagnosis.sharded > 0 or name == "resnet"
    assert torch.get_default_dtype() is torch.float32
