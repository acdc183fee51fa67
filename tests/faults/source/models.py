"""Small models under plans, with the module before and after each pass: what faults of the source are tried on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CAPTURED, CompileRequest, Observer, Options
from stretto.dsl import Plan
from stretto.frontend.to_ir import Floats
from stretto.ir.equivalence.integer_ranges import IntegerRange
from stretto.ir.equivalence.random_inputs import infer_ranges
from stretto.ir.module import Module
from stretto.passes.default_pipeline import PipelineConfig, default_pipeline
from stretto.passes.manager import Step, single, step_name
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, WIDTH, BATCH, TOKENS = 7, 8, 4, 4
"""Two ranks do not divide the vocabulary."""
SHARDS = """shard "*.{q,k,v}", "*.up" columns over tp
shard "*.o", "*.down" rows over tp
shard "tokens", "head" vocab over tp
"""


class Block(nn.Module):
    """Attention and a feed-forward part, normalized before and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH, eps=1e-3)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        normal = self.before(x)
        q, k, v = (
            part(normal).view(x.shape[0], x.shape[1], 2, WIDTH // 2).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(torch.tanh(self.up(self.between(x))))


class LanguageModel(nn.Module):
    """Two blocks; a loss over labels that are not ignored, and a penalty that is a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """(batch, tokens) of integers to the loss."""
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        loss = F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())
        return loss + 0.1 * F.mse_loss(x, torch.zeros_like(x)) + 0.1 * x.amax(-1).mean()


class Images(nn.Module):
    """A convolution, a batch norm, and a loss that is a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(batch, channels, height, width) and (batch, classes) to the loss."""
        pooled = torch.relu(self.norm(self.convolution(x))).mean((2, 3))
        return F.mse_loss(torch.softmax(self.head(pooled), -1), y)


PLANS = {
    "tensor": f"mesh (dp=2, tp=2)\n{SHARDS}",
    "sequence": f"mesh (dp=2, tp=2)\n{SHARDS}shard activations tokens over tp\n",
    "pipeline": "mesh (pp=2, dp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }\n",
    "split": "mesh (pp=2)\npipeline over pp { schedule zb-h1  microbatches 3 }\n",
    "images": "mesh (dp=2)\n",
}
"""By case."""


@dataclass(frozen=True)
class Compilation:
    """The clean compile of a case."""

    steps: tuple[Step, ...]
    texts: tuple[str, ...]
    """The module before each step, and after the last."""
    ranges: dict[str, IntegerRange]

    def before(self, name: str) -> str:
        """The module before the first pass of a name."""
        return self.texts[[step_name(step) for step in self.steps].index(name)]


def inputs_of(case: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model of a case and its inputs."""
    torch.manual_seed(0)
    rows = 6 if case == "split" else BATCH
    if case == "images":
        return Images(), {"x": torch.randn(rows, 2, 3, 3), "y": torch.randn(rows, 3)}
    ids = torch.zeros(rows, TOKENS, dtype=torch.int64)
    return LanguageModel(), {"ids": ids, "labels": ids}


def request(case: str) -> CompileRequest:
    """The request to compile a case, in float64."""
    model, inputs = inputs_of(case)
    options = Options(floats=Floats.FLOAT64, loss_only=True)
    return CompileRequest.of(model, (), inputs, Plan.parse(PLANS[case]), options)


@cache
def compilation(case: str) -> Compilation:
    """A case compiled without a fault, once a process."""
    texts: list[str] = []
    compile_program(request(case), Observer(module=lambda name, module: texts.append(module.text())))
    steps = tuple(single(default_pipeline(PipelineConfig(Plan.parse(PLANS[case]), follow_precision=False))))
    assert len(texts) == len(steps) + 1, CAPTURED
    return Compilation(steps, tuple(texts), infer_ranges(Module.parse(texts[0])))
