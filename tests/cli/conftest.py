"""A small GPT in a file, plans, and programs compiled once for all tests of the command."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from stretto import cli

MODEL = """
import torch
from torch import nn
from torch.nn import functional as F

print("the model's file prints")


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(width, width)

    def forward(self, x):
        batch, seq, width = x.shape
        y = self.norm(x)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(y).view(batch, seq, self.heads, -1).transpose(1, 2) for project in projections)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.o_proj(y.transpose(1, 2).reshape(batch, seq, width))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.layers = nn.ModuleList([Block(16, 4) for _ in range(3)])
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, targets=None):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x.float().to(x.dtype))
        logits = self.head(x)
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Branching(GPT):
    def forward(self, tokens, targets):
        loss = super().forward(tokens, targets)
        if loss > 1:
            loss = loss * 2
        return loss


def tokens(rows):
    return torch.arange(rows * 8).remainder(40).reshape(rows, 8)


def make():
    return GPT(), {"tokens": tokens(4), "targets": tokens(4)}


def make_forward():
    return GPT(), {"tokens": tokens(4)}


def make_three_rows():
    return GPT(), {"tokens": tokens(3), "targets": tokens(3)}


class Fixed(GPT):
    def forward(self, tokens, targets):
        return super().forward(tokens, targets) * (2 if tokens.shape[0] == 4 else 1)


def make_fixed():
    return Fixed(), {"tokens": tokens(4), "targets": tokens(4)}


def make_branching():
    return Branching(), {"tokens": tokens(4), "targets": tokens(4)}


def make_nothing():
    return None
"""

PLAN = """mesh (dp=2, tp=2)
shard "*.{q,k,v}_proj" columns over tp
shard "*.o_proj" rows over tp
shard "embed" vocab over tp
"""

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip

LLAMA_PLAN = """mesh (tp=2)
shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp
shard "*.o_proj", "*.down_proj" rows over tp
shard activations tokens over tp
"""


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


class Command:
    """Calls the command in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: object) -> Result:
        self._capture.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *self._capture.readouterr())

    def err(self) -> str:
        """What was written to stderr by a call that raised."""
        return self._capture.readouterr().err


@pytest.fixture
def stretto(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with model files and plans."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "model.py").write_text(MODEL)
    (folder / "gpt.plan").write_text(PLAN)
    (folder / "llama.json").write_text(json.dumps(LLAMA))
    (folder / "llama.plan").write_text(LLAMA_PLAN)
    (folder / "two.plan").write_text(PLAN.replace("dp=2, ", ""))
    return folder


@pytest.fixture(scope="session")
def program(sources: Path) -> Path:
    """The GPT, compiled for training in float64 on four ranks."""
    return compiled(sources, "model.py:make", "gpt.plan", "gpt", "--dtype", "float64")


@pytest.fixture(scope="session")
def forward(sources: Path) -> Path:
    """The GPT, compiled for inference on two ranks."""
    return compiled(sources, "model.py:make_forward", "two.plan", "forward", "--mode", "infer")


@pytest.fixture(scope="session")
def llama(sources: Path) -> Path:
    """The Llama, compiled for inference in float64 on two ranks."""
    options = ("--dtype", "float64", "--mode", "infer", "--batch", "2", "--seq", "8")
    return compiled(sources, "hf:llama.json", "llama.plan", "llama", *options)


def compiled(sources: Path, target: str, plan: str, name: str, *options: str) -> Path:
    before = os.getcwd()
    os.chdir(sources)
    try:
        assert cli.main(["compile", target, "--plan", plan, "-o", name, *options]) == 0
    finally:
        os.chdir(before)
    return sources / name
