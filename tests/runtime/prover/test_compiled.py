"""What the compiler makes is proved safe, and so is what tests of the runtime run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from stretto.driver.compile.compile_program import compile_capture
from stretto.driver.compile.request import Options
from stretto.dsl import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction
from stretto.runtime.prover import RankClass, prove, prove_ranks
from torch import Tensor, nn
from torch.nn import functional as F

from ..tiny_programs import data_parallel, linear, without_types

SHARDS = """
shard "*.{q,k,v}_proj", "*.up" columns over tp
shard "*.o_proj", "*.down" rows over tp
shard "wte" vocab over tp
"""
PLANS = {
    "dp": "mesh (dp=2)",
    "tp": f"mesh (tp=2){SHARDS}",
    "dp and tp with sequence parallelism": f"mesh (dp=2, tp=2){SHARDS}shard activations tokens over tp",
}


class Block(nn.Module):
    """Attention and a feed-forward part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = (batch, tokens, self.heads, width // self.heads)
        y = self.ln1(x)
        q, k, v = (proj(y).view(split).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """Two blocks between an embedding and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(32, 16)
        self.blocks = nn.ModuleList([Block(16, 2) for _ in range(2)])
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).view(-1, 32), targets.view(-1))


@cache
def compiled(plan: str) -> Program:
    """The training program of the GPT, whose embedding is tied to its head, under a plan; one capture serves all."""
    model, captured = _captured()
    return compile_capture(captured, model, Plan.parse(plan), Options(mode=Mode.TRAIN, loss_only=True)).program


@cache
def _captured() -> tuple[GPT, Capture]:
    model = GPT()
    batch = {name: torch.zeros(4, 8, dtype=torch.int64) for name in ("tokens", "targets")}
    return model, capture(model, (), batch, mode=Mode.TRAIN, loss_only=True)


def altered(program: Program, name: str, code: tuple[Instruction, ...]) -> Program:
    """The program with other instructions in one function; when one is gone, the backward begins earlier."""
    function = program.functions[name]
    begins, gone = function.backward_at, len(function.code) - len(code)
    if begins is not None and code[begins - gone :] == function.code[begins:]:
        begins -= gone
    edited = replace(function, code=code, backward_at=begins)
    return without_types(replace(program, functions={**program.functions, name: edited}))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_compiled_gpt_is_proved_safe(plan: str) -> None:
    verdict = prove(compiled(plan))
    assert verdict.safe, verdict.render()
    assert verdict.collectives > 0


def test_no_instruction_of_a_collective_can_be_left_out_of_a_compiled_program() -> None:
    program = compiled(PLANS["tp"])
    tried = 0
    for name, function in program.functions.items():
        for index, instruction in enumerate(function.code):
            if instruction.op.startswith("comm."):
                tried += 1
                code = function.code[:index] + function.code[index + 1 :]
                assert not prove(altered(program, name, code)).safe, f"{name}[{index}]"
    assert tried > 10


def test_no_collective_of_a_compiled_program_can_be_skipped_by_one_rank() -> None:
    """Its start and wait become one op of the same shape, where the shape stays what it was."""
    program = compiled(PLANS["tp"])
    tried = 0
    for name, function in program.functions.items():
        for index, instruction in enumerate(function.code):
            if instruction.op == "comm.all_reduce_start":
                tried += 1
                code = list(function.code)
                code[index] = replace(instruction, op="aten.clone.default", kwargs={})
                end = next(later for later in range(index, len(code)) if code[later].reads() == instruction.writes())
                code[end] = replace(code[end], op="aten.clone.default")
                classes = [RankClass(program, (0,)), RankClass(altered(program, name, tuple(code)), (1,))]
                verdict = prove_ranks(classes).counterexample
                assert verdict is not None and verdict.code in ("E0710", "E0711"), f"{name}[{index}]"
    assert tried > 5


def test_the_handwritten_programs_of_the_runtimes_tests_are_safe() -> None:
    for program in (linear(), linear(ranks=3, width=7), data_parallel(), data_parallel(reduced=False)):
        verdict = prove(program)
        assert verdict.safe, verdict.render()
