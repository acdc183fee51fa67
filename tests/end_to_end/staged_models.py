"""Small models for pipelines, each captured once for a mode and compiled under many plans.

Their batch is a multiple of 2, 4, 7 and 8.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from stretto.driver.compile.compile_program import compile_capture
from stretto.driver.compile.request import Options
from stretto.dsl import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode
from stretto.frontend.to_ir import Floats
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.reduction_dtypes import OWN, REDUCE
from stretto.runtime.checks.report import CheckReport, Verdict
from stretto.runtime.program.program import Program
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, SEQ, VOCABULARY = 56, 4, 24
IGNORED = -100


@dataclass(frozen=True)
class Staged:
    """One call of a model by keywords; what checks need to know of the inputs; which of them training alone takes."""

    model: nn.Module
    inputs: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ("labels",)

    def inputs_for(self, mode: Mode) -> dict[str, Tensor]:
        """The inputs of a mode."""
        left_out = () if mode is Mode.TRAIN else self.labels
        return {name: value for name, value in self.inputs.items() if name not in left_out}


def llama() -> Staged:
    """Hugging Face's Llama of four layers, its head tied to its embedding."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2,
        max_position_embeddings=SEQ,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.LlamaForCausalLM(config)
    about = {"input_ids": {"high": VOCABULARY}, "labels": {"high": VOCABULARY, "ignore_index": IGNORED}}
    return Staged(model, {"input_ids": _tokens(), "labels": _tokens()}, about)


class Skipping(nn.Module):
    """Layers down and up again: each layer on the way up also takes what its partner on the way down gave."""

    def __init__(self, width: int = 6, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(batch, 5) to scores (batch, 3), or to the mean square error."""
        x, skips = self.embed(x), []
        for layer in self.down:
            x = torch.tanh(layer(x))
            skips.append(x)
        for layer in self.up:
            x = torch.tanh(layer(torch.cat([x, skips.pop()], -1))) + x
        output: Tensor = self.head(self.norm(x))
        return output if labels is None else F.mse_loss(output, labels)


def skipping() -> Staged:
    """A model with skip connections from its first stages to its last."""
    return Staged(Skipping(), {"x": torch.randn(BATCH, 5), "labels": torch.randn(BATCH, 3)})


class Attending(nn.Module):
    """Attention of `x` to `memory`, and a residual feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm, self.up, self.out = nn.LayerNorm(width), nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        keys, values = self.kv(memory).chunk(2, -1)
        mixed = F.scaled_dot_product_attention(self.q(x)[:, None], keys[:, None], values[:, None])
        x = x + self.o(mixed[:, 0])
        return x + self.out(F.gelu(self.up(self.norm(x))))


class Translating(nn.Module):
    """An encoder, a decoder whose layers all look at what the encoder gave, one embedding for both and for the head."""

    def __init__(self, width: int = 8, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.encoder = nn.ModuleList(Attending(width) for _ in range(layers))
        self.decoder = nn.ModuleList(Attending(width) for _ in range(layers))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, source: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores (batch, tokens, vocabulary), or the mean cross-entropy of what is not ignored."""
        memory = self.embed(source)
        for layer in self.encoder:
            memory = layer(memory, memory)
        x = self.embed(target)
        for layer in self.decoder:
            x = layer(x, memory)
        scores: Tensor = self.head(x)
        return scores if labels is None else F.cross_entropy(scores.flatten(0, 1), labels.flatten())


def translating() -> Staged:
    """An encoder-decoder."""
    high = {"high": VOCABULARY}
    about = {"source": high, "target": high, "labels": {**high, "ignore_index": IGNORED}}
    return Staged(Translating(), {"source": _tokens(3), "target": _tokens(), "labels": _tokens()}, about)


MODELS = {"llama": llama, "skipping": skipping, "translating": translating}
"""The models of the matrix."""


@cache
def step_of(name: str, mode: Mode) -> tuple[Staged, Capture]:
    """A model of the matrix, captured."""
    torch.manual_seed(0)
    staged = MODELS[name]()
    return staged, captured(staged, mode)


def captured(staged: Staged, mode: Mode = Mode.TRAIN, *, loss_only: bool = True, **how: Any) -> Capture:
    """One call, captured."""
    return capture(
        staged.model, (), staged.inputs_for(mode), mode=mode, loss_only=loss_only and mode is Mode.TRAIN, **how
    )


def compiled(staged: Staged, step: Capture, plan: str, mode: Mode = Mode.TRAIN) -> Program:
    """The program of a captured call in float64."""
    options = Options(mode=mode, floats=Floats.FLOAT64, arguments={"inputs": dict(staged.about), REDUCE: OWN})
    return compile_capture(step, staged.model, Plan.parse(plan, "a.plan"), options).program


def assert_equal(program: Program) -> CheckReport:
    """Outputs, gradients, and parameters after three steps of AdamW, are as on one device to 1e-9, each of them."""
    report = check(program)
    assert report.passed, "\n".join(str(row) for row in report.rows if row.verdict is Verdict.DIFFERS)
    unchecked = [row for row in report.rows if row.verdict is Verdict.NOT_CHECKED]
    assert [row.name for row in unchecked if not row.note.startswith("no gradient on either side")] == []
    assert report.tolerance == 1e-9
    return report


def _tokens(length: int = SEQ) -> Tensor:
    return torch.zeros(BATCH, length, dtype=torch.int64)
