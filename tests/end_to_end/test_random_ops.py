"""Dropouts and other random ops under plans: all ranks together draw what one device draws, to 1e-9 in float64."""

from __future__ import annotations

import pytest
import torch
from stretto.frontend.captured import Mode
from stretto.ir.equivalence import compare
from stretto.ir.equivalence.compare import Verdict
from stretto.ir.module import Level, Module
from stretto.runtime.checks.program_check import check
from stretto.runtime.program.arguments import Slot
from stretto.runtime.prover import prove
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import some
from .checking import assert_report, compiled, compiled_model
from .models import GPT, Block, Case, Size, plan

TOKENS = "shard activations tokens over tp"
EVEN, ODD = Size(layers=2), Size(vocab=41, width=13, heads=6, head=4, inner=21, layers=2, seq=9)
PLANS = {
    "dp": ("dp=2", ()),
    "tp": ("tp=2", ()),
    "dp_tp": ("dp=2, tp=2", ()),
    "tp_sequence": ("tp=2", (TOKENS,)),
    "three_way_sequence": ("tp=3", (TOKENS,)),
}


class DroppingBlock(Block):
    """With a dropout on attention weights, behind attention, and inside and behind the feed-forward."""

    def forward(self, x: Tensor) -> Tensor:
        attention, normed = self.attention, self.attention_norm(x)
        batch, seq, _ = x.shape
        q, k, v = (
            p(normed).view(batch, seq, attention.heads, -1).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.2)
        x = x + F.dropout(attention.o_proj(mixed.transpose(1, 2).reshape(batch, seq, -1)), 0.1)
        return x + F.dropout(self.down(F.dropout(F.gelu(self.up(self.norm(x))), 0.3)), 0.1)


def dropping(size: Size) -> Case:
    """The GPT of these blocks."""
    return of_blocks(DroppingBlock, size)


def of_blocks(kind: type[Block], size: Size) -> Case:
    """The GPT of some blocks."""
    model = GPT(size)
    model.blocks = nn.ModuleList(kind(size.width, size.heads, size.head, size.inner) for _ in range(size.layers))
    tokens = torch.zeros(size.batch, size.seq, dtype=torch.int64)
    return Case(model, {"tokens": tokens, "targets": tokens.clone()}, "targets", size.vocab)


def assert_drops_alike(size: Size, name: str) -> None:
    mesh, lines = PLANS[name]
    torch.manual_seed(0)
    program = compiled(dropping(size), plan("gpt", mesh, *lines)).program
    assert prove(program).safe
    assert_report(check(program))


@pytest.mark.parametrize("name", some("tp_sequence", "dp_tp"))
def test_a_gpt_with_dropout_trains_as_on_one_device(name: str) -> None:
    assert_drops_alike(EVEN, name)


@pytest.mark.slow
def test_padding_of_uneven_shards_shifts_no_mask() -> None:
    assert_drops_alike(ODD, "three_way_sequence")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("size", [EVEN, ODD], ids=["even", "odd"])
def test_every_plan_drops_what_one_device_drops(size: Size, name: str) -> None:
    assert_drops_alike(size, name)


def test_folded_layers_draw_each_their_own_masks() -> None:
    program = compiled(dropping(EVEN), plan("gpt", "tp=2", TOKENS)).program
    drawing = [f for name, f in program.functions.items() if any(c.op == "rank.random" for c in f.code)]
    [body] = drawing
    numbers = {c.args[1].index for c in body.code if c.op == "rank.random" and isinstance(c.args[1], Slot)}
    assert len(numbers) == 4 and numbers <= set(body.arguments)
    indices = [c for c in program.functions["main"].code if c.op == "aten.scalar_tensor.default"]
    assert [c.args[0] for c in indices if c.kwargs["dtype"] is torch.int64] == list(range(8))


@pytest.mark.slow
def test_the_interpreter_agrees_with_itself_before_and_after_partitioning() -> None:
    modules: dict[str, Module] = {}

    def keep(name: str, module: Module) -> None:
        modules[name] = Module.parse(module.text())

    torch.manual_seed(0)
    case = dropping(Size(layers=1, width=8, heads=2, inner=6, vocab=11, batch=2, seq=6))
    compiled(case, plan("gpt", "tp=2", TOKENS), after=keep)
    before, after = modules["captured"], modules["start-collectives"]
    assert (before.level, after.level) == (Level.ATEN, Level.COMM)
    comparison = compare(before, after, tolerance=1e-9)
    assert not [r for r in comparison.results if r.verdict is Verdict.DIFFERENT]


class Noise(nn.Module):
    """A step of a denoising model: its times and its noise are drawn inside."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.up, self.down = nn.Embedding(10, 6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.randint(0, 10, (x.shape[0],), device=x.device)
        noise = torch.randn_like(x)
        share = torch.rand(x.shape[0], 1)
        noisy = x * share + noise * (1 - share) + torch.empty_like(x).uniform_(-0.1, 0.1) + torch.randn(6)
        order = torch.randperm(6)
        hidden = torch.feature_dropout(self.up(noisy[:, order] + self.times(times))[:, :, None], 0.3, True)[:, :, 0]
        kept = torch.bernoulli(torch.full_like(x, 0.7))
        return (F.alpha_dropout(self.down(F.selu(hidden)), 0.1) * kept - noise).pow(2).mean()


@pytest.mark.parametrize("mesh", some("dp=2, tp=2", "dp=2", "tp=2"))
def test_other_random_ops_are_the_same_under_every_plan(mesh: str) -> None:
    torch.manual_seed(0)
    placed = 'shard "up" columns over tp\nshard "down" rows over tp' if "tp" in mesh else ""
    program = compiled_model(Noise(), {"x": torch.randn(4, 6)}, f"mesh ({mesh})\n{placed}", Mode.TRAIN).program
    assert_report(check(program))


def test_no_rank_makes_more_of_a_mask_than_it_uses() -> None:
    program = compiled(dropping(EVEN), plan("gpt", "tp=2", TOKENS)).program
    for function in program.functions.values():
        for instruction in function.code:
            if instruction.op == "rank.random":
                size, chunks = instruction.kwargs["size"], instruction.kwargs["chunks"]
                assert [a // b for a, b in zip(size, chunks, strict=True)].count(2) == 1  # type: ignore[arg-type]


class EagerBlock(Block):
    """Attention written as products and a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        attention, normed = self.attention, self.attention_norm(x)
        batch, seq, _ = x.shape
        q, k, v = (
            p(normed).view(batch, seq, attention.heads, -1).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (q @ k.transpose(-2, -1) * 0.3).softmax(-1)
        x = x + attention.o_proj((weights @ v).transpose(1, 2).reshape(batch, seq, -1))
        return x + self.down(F.gelu(self.up(self.norm(x))))


@pytest.mark.parametrize("kind", some(DroppingBlock, EagerBlock))
@pytest.mark.slow
def test_attention_in_products_keeps_its_heads_apart_and_gathers_nothing(kind: type[Block]) -> None:
    torch.manual_seed(0)
    program = compiled(of_blocks(kind, EVEN), plan("gpt", "dp=2, tp=2")).program
    ops = {instruction.op for function in program.functions.values() for instruction in function.code}
    assert "comm.all_gather_start" not in ops and "comm.all_reduce_start" in ops
    assert_report(check(program))
