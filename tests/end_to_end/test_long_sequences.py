"""`attention over`: by each method the values are those of one device, and a step moves the published volume.

Symbols: N tokens, h and g heads of queries and of keys, P ranks; volumes are elements of heads that a rank sends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import product
from math import prod
from typing import Any

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.dsl.plan import Plan
from stretto.frontend.captured import Mode
from stretto.ir.module import Module
from stretto.ir.types import from_mlir
from stretto.passes.rewriting import sites
from stretto.passes.sharding.choose_attention import ChooseAttention
from stretto.runtime.checks.program_check import check
from stretto.runtime.prover import prove
from stretto.runtime.threads.communicator import RankGroup
from stretto.runtime.threads.rendezvous import Call
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import only
from .checking import assert_equal, assert_report, compiled, compiled_model
from .models import MODELS, Case, Size, plan
from .test_token_sharding import HEADS_OVER_TP, GroupedAttention
from .traffic import messages

SIZE = {"vocab": 44, "width": 16, "heads": 4, "head": 4, "inner": 24, "seq": 8}
BATCH, N, HEAD = 3, 8, 4
ZIGZAG = "ring  layout zigzag"
QUERIES, ZIGZAG_QUERIES = "bidirectional", "bidirectional  layout zigzag"
METHODS = ("all_to_all", "ring", ZIGZAG, QUERIES, ZIGZAG_QUERIES, "gather")


@cache
def _case(model: str) -> Case:
    return MODELS[model](Size(batch=4, layers=2, **SIZE))


def _plan(mesh: str, method: str, *lines: str, tokens: str = "dim 1 over cp", over: str = "cp") -> str:
    cut, attention = f"shard inputs {tokens}", f"attention over {over} {{ method {method} }}"
    return "\n".join([f"mesh ({mesh})", cut, attention, *lines])


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """By kind, the elements that rank 0 sends for tensors of four dims: those of heads."""
    counts: Counter[str] = Counter()
    join = RankGroup.join

    def counted(
        self: RankGroup, rank: int, members: Sequence[int], number: int, call: Call, tensors: Sequence[Tensor]
    ) -> Any:
        ranks = len(members)
        parts = {"all_to_all": (ranks - 1) / ranks, "all_gather": ranks - 1, "reduce_scatter": (ranks - 1) / ranks}
        if rank == 0 and tensors[0].dim() == 4:
            counts[call.op] += round(parts.get(call.op, 1) * sum(tensor.numel() for tensor in tensors))
        return join(self, rank, tuple(members), number, call, tensors)

    monkeypatch.setattr(RankGroup, "join", counted)
    return counts


def _step(heads: tuple[int, int], text: str) -> None:
    model = stretto.compile(GroupedAttention(*heads).double(), plan=text)
    model(torch.randn(BATCH, N, 16, dtype=torch.float64)).backward()


@pytest.mark.parametrize(("heads", "ranks"), only([((8, 4), 4)], [((8, 4), 2), ((8, 4), 4), ((8, 8), 4)]))
def test_all_to_all_exchanges_the_volume_of_ulysses_forward_and_backward(
    heads: tuple[int, int], ranks: int, sent: Counter[str]
) -> None:
    """(2 h + 2 g) N (P-1) / P^2 each way (DeepSpeed-Ulysses, arXiv:2309.14509, section 3.2; P divides g)."""
    _step(heads, _plan(f"cp={ranks}", "all_to_all"))
    one_way = 2 * sum(heads) * N * HEAD * BATCH * (ranks - 1) // ranks**2
    assert sent == {"all_to_all": 2 * one_way}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_gather_gathers_keys_and_values_and_scatters_the_sums_of_their_gradients(
    ranks: int, sent: Counter[str]
) -> None:
    """2 g N (P-1) / P each way (Llama 3, arXiv:2407.21783, section 3.3.2)."""
    _step((8, 2), _plan(f"cp={ranks}", "gather"))
    one_way = 2 * 2 * N * HEAD * BATCH * (ranks - 1) // ranks
    assert sent == {"all_gather": one_way, "reduce_scatter": one_way}


@pytest.mark.parametrize("method", only([ZIGZAG], ["ring", ZIGZAG]))
@pytest.mark.parametrize(("heads", "ranks"), only([((4, 2), 2)], [((4, 2), 2), ((8, 2), 4), ((8, 8), 4)]))
def test_a_ring_passes_keys_and_values_once_round_and_in_the_backward_their_gradients_too(
    heads: tuple[int, int], ranks: int, method: str, sent: Counter[str]
) -> None:
    """Forward 2 g N (P-1) / P, backward twice as much: the own block comes last (arXiv:2310.01889, section 3).

    With the own block first, as in the paper, gradients would pass P times.
    """
    _step(heads, _plan(f"cp={ranks}", method))
    once = 2 * heads[1] * N * HEAD * BATCH * (ranks - 1) // ranks
    assert sent == {"permute": 3 * once}


@pytest.mark.slow
@pytest.mark.parametrize("method", [QUERIES, ZIGZAG_QUERIES])
@pytest.mark.parametrize(("heads", "ranks"), [((4, 2), 2), ((8, 2), 4), ((8, 8), 4)])
def test_queries_go_one_way_round_and_their_results_come_back(
    heads: tuple[int, int], ranks: int, method: str, sent: Counter[str]
) -> None:
    """Forward h N (P-1) / P each way: queries, and output (TokenRing, arXiv:2412.20501, section 3; the logsumexp is one
    number more a head). Backward three times as much one way, queries, output and its gradient, and as much back."""
    _step(heads, _plan(f"cp={ranks}", method))
    once = heads[0] * N * HEAD * BATCH * (ranks - 1) // ranks
    assert sent == {"permute": (2 + 4) * once}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_two_axes_send_as_the_ring_of_the_one_and_the_heads_of_the_other(layout: str, sent: Counter[str]) -> None:
    """Over A keys of 1/B of the heads and their gradients go round; over B it is Ulysses on 1/A of the tokens (USP,
    arXiv:2405.07719, section 3)."""
    method = f"ring_all_to_all  layout {layout}"
    text = _plan("a=2, cp=2", method, tokens="dim 1 over a, cp", over="a, cp")
    _step((8, 4), text)
    ring = 3 * 2 * 4 * N * HEAD * BATCH // 2 // 2
    assert sent == {"permute": ring, "all_to_all": 2 * 2 * 12 * (N // 2) * HEAD * BATCH // 4}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_heads_of_keys_that_the_model_repeats_itself_are_sent_once(method: str) -> None:
    """Hugging Face's Llama repeats two heads of keys for four of queries."""
    moved = [m for m in messages(compiled(_case("llama"), _plan("cp=2", method))) if len(m.operand_shape) == 4]
    elements = sum(prod(m.operand_shape) for m in moved)
    one, layers = 2 * HEAD * N // 2 * 4, 2  # two heads of the rank's tokens; the queries have as many twice
    both_ways = {"all_to_all": 2 * (2 * 2 + 2) * one, "gather": (2 + 2 * 2) * one}
    both_ways |= {"ring": 6 * one, ZIGZAG: 6 * one, QUERIES: 6 * 2 * one, ZIGZAG_QUERIES: 6 * 2 * one}
    assert elements == layers * both_ways[method]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_ranks_that_need_the_copies_of_the_model_keep_them(method: str) -> None:
    text = plan("llama", "tp=4, cp=2", *_plan("tp=4, cp=2", method).split("\n")[1:])
    case = MODELS["llama"](Size(batch=2, layers=1, **{**SIZE, "heads": 8, "head": 2}))
    assert_equal(case, text)


def _scores(ranks: int, method: str, mask: str = "") -> int:
    """How many scores the attentions of a rank compute for a row and a head, in the forward."""
    texts: dict[str, str] = {}
    inputs, lines, tokens = {"x": torch.zeros(1, 16, 16)}, [], "dim 1 over cp"
    if mask:
        inputs["padding"] = torch.zeros(1, dtype=torch.int64)
        lines, tokens = ['shard inputs "padding" whole'], '"x" dim 1 over cp'
    compiled_model(
        Masked(mask) if mask else GroupedAttention(2, 2), inputs,
        _plan(f"cp={ranks}", method, *lines, tokens=tokens), Mode.INFER,
        after=lambda name, module: texts.update({name: module.text()}),
    )  # fmt: skip
    module = Module.parse(texts["partition-tensors"])
    calls = [site.call for site in sites(module, ["nn.attention"])]
    return sum(from_mlir(q.type).shape[2] * from_mlir(k.type).shape[2] for q, k, *_ in (call.args for call in calls))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_zigzag_computes_half_a_block_of_scores_at_each_step_on_every_rank(ranks: int) -> None:
    block = (16 // ranks) ** 2
    assert _scores(ranks, "ring") == ranks * block
    assert _scores(ranks, ZIGZAG) == _scores(ranks, ZIGZAG_QUERIES) == block + (ranks - 1) * block // 2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("mask", ["of all", "of two documents", "of causality"])
def test_a_mask_that_hides_later_keys_costs_no_more_than_a_causal_flag(mask: str, ranks: int) -> None:
    assert _scores(ranks, ZIGZAG, mask) == _scores(ranks, ZIGZAG)
    assert _scores(ranks, "ring", mask) == _scores(ranks, "ring")
    assert _scores(ranks, ZIGZAG, "of the lowest number") == ranks * (16 // ranks) ** 2


@pytest.mark.slow
def test_a_window_ends_the_ring_where_no_rank_sees_a_block(sent: Counter[str]) -> None:
    """Windows of 3 and 6 of 16 tokens, of which a rank has 4, reach 1 and 2 blocks back."""
    assert [_scores(4, "ring", f"of {width}") for width in ("a window", "a wide window")] == [2 * 16, 3 * 16]
    text = _plan("cp=4", "ring", 'shard inputs "padding" whole', tokens='"x" dim 1 over cp')
    model = stretto.compile(Masked("of a window").double(), plan=text)
    model(torch.randn(1, 16, 16, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)).backward()
    assert sent == {
        "permute": 3 * 2 * 2 * 4 * 4
    }  # keys and values of two heads, 4 tokens of 4: one hop, with gradients


@pytest.mark.slow
def test_a_ring_holds_two_blocks_of_keys_where_a_gather_holds_all() -> None:
    x = {"x": torch.zeros(1, 512, 16)}
    peaks = {
        (method, ranks): prove(
            compiled_model(GroupedAttention(4, 4), x, _plan(f"cp={ranks}", method), loss_only=True).program
        ).peak_bytes
        for method in METHODS
        for ranks in (2, 4)
    }
    rings = ("ring", ZIGZAG, QUERIES, ZIGZAG_QUERIES)
    assert all(peaks[ring, ranks] < peaks["gather", ranks] / 2 for ring in rings for ranks in (2, 4))
    assert all(peaks[method, 4] < 0.8 * peaks[method, 2] for method in METHODS)


class Masked(nn.Module):
    """Attention with a mask made of how many tokens of each row are padding, on the left; two heads of keys of four."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        self.mask = mask
        self.q, self.kv, self.o = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.kv(x).chunk(2, -1))
        positions = torch.arange(x.shape[1])
        real = (positions >= padding[:, None])[:, None, None]
        seen = real & (positions[:, None] >= positions)
        is_first = positions < padding[:, None]  # packed: the first document is as long as the padding was
        seen_before = (is_first[:, None] == is_first[:, :, None])[:, None]
        masks = {
            "of keys": real,
            "of all": seen,
            "of the lowest number": torch.where(seen, 0.0, torch.finfo(x.dtype).min).to(x.dtype),
            "of a window": seen & (positions[:, None] - positions < 3),
            "of a wide window": seen & (positions[:, None] - positions < 6),
            "of both sides": real & ((positions[:, None] - positions).abs() < 3),
            "of causality": torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(),
            "of two documents": seen_before & (positions[:, None] >= positions),
            "of distances": (positions[:, None] - positions).abs().to(x.dtype) * -0.1,
        }
        y = F.scaled_dot_product_attention(q, k, v, masks[self.mask], enable_gqa=True)
        loss: Tensor = (x + self.o(y.transpose(1, 2).flatten(2))).square().mean()
        return loss


@pytest.mark.parametrize(
    ("mask", "ranks", "method"),
    only(
        [("of all", 2, ZIGZAG), ("of all", 2, ZIGZAG_QUERIES)],
        product(
            [
                *("of keys", "of all", "of the lowest number", "of a window", "of a wide window", "of both sides"),
                *("of causality", "of two documents", "of distances"),
            ],
            [2, 4],
            METHODS,
        ),
    ),
)
def test_masks_go_with_their_keys_and_rows_of_padding_alone_stay_what_they_are(
    mask: str, ranks: int, method: str
) -> None:
    text = _plan(f"cp={ranks}", method, 'shard inputs "padding" whole', tokens='"x" dim 1 over cp')
    inputs = {"x": torch.zeros(BATCH, N, 16), "padding": torch.zeros(BATCH, dtype=torch.int64)}
    program = compiled_model(Masked(mask), inputs, text, about={"padding": {"high": 6}}, loss_only=True)
    torch.manual_seed(0)
    assert_report(check(program.program))


@pytest.mark.parametrize(
    ("heads", "mesh", "method"),
    only(
        [],
        [
            *(((8, 2), mesh, method) for mesh in ("cp=4", "tp=2, cp=2", "cp=2, tp=2") for method in METHODS),
            ((6, 1), "cp=2", "all_to_all"),
            ((12, 2), "cp=3, tp=2", "all_to_all"),
        ],
    ),
)
def test_attention_with_fewer_heads_of_keys_than_ranks_is_that_of_one_device(
    heads: tuple[int, int], mesh: str, method: str
) -> None:
    text = _plan(mesh, method, *([HEADS_OVER_TP] if "tp" in mesh else []))
    x = torch.zeros(BATCH, 12 if "3" in mesh else N, 16)
    program = compiled_model(GroupedAttention(*heads), {"x": x}, text, loss_only=True)
    torch.manual_seed(0)
    assert_report(check(program.program))
    assert prove(program.program).safe


class LinearAttention(nn.Module):
    """Causal linear attention, normalised by the sum of its weights: in chunks, or one token after the other."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, HEAD)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        v = F.pad(v, (0, 1), value=1.0)  # its last column adds up the weights
        if self.chunk > 1:
            q, k, v = (part.unflatten(2, (-1, self.chunk)) for part in (q, k, v))
            states = k.transpose(-1, -2) @ v
            y = (q @ (states.cumsum(2) - states) + (q @ k.transpose(-1, -2)).tril() @ v).flatten(2, 3)
        else:
            y = (q[..., None, :] @ (k[..., None] * v[..., None, :]).cumsum(2)).squeeze(-2)
        y = y[..., :-1] / y[..., -1:]
        loss: Tensor = (x + self.o(y.transpose(1, 2).flatten(2))).square().mean()
        return loss


@pytest.mark.parametrize(("chunk", "ranks", "lines"), only([(2, 2, "")], [
    *product([2, 1], [2, 4], [""]), (2, 2, 'shard "q", "k", "v" columns over tp'), (2, 2, "zero 3 over cp"),
]))  # fmt: skip
def test_linear_attention_gathers_the_states_of_ranks_once_each_way(chunk: int, ranks: int, lines: str) -> None:
    """A state is d (d + 1) elements a head, with the sum of weights, however long the sequence is; one gather forward,
    one backward (LASP-2, arXiv:2502.07563, section 3.4: 2 steps of B H d^2)."""
    mesh = f"cp={ranks}, tp=2" if "tp" in lines else f"cp={ranks}"
    inputs = {"x": torch.zeros(BATCH, N, 16)}
    program = compiled_model(LinearAttention(chunk), inputs, _plan(mesh, "state", *lines.split("\n")), loss_only=True)
    torch.manual_seed(0)
    assert_report(check(program.program))
    sent = [m for m in messages(program) if len(m.operand_shape) == 5]
    heads = 4 // (2 if "tp" in lines else 1)
    assert [(m.kind, prod(m.operand_shape)) for m in sent] == 2 * [("all_gather", BATCH * heads * HEAD * (HEAD + 1))]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["gpt", "llama"])
@pytest.mark.parametrize(
    ("mesh", "lines"),
    [
        ("cp=2", ()),
        ("cp=4", ()),
        ("cp=2, tp=2", ()),
        ("tp=2, cp=2", ()),
        ("dp=2, cp=2", ("zero 3 over dp, cp",)),
        ("pp=2, cp=2", ("pipeline over pp { microbatches 2 }",)),
        ("pp=2, cp=2", ("pipeline over pp { microbatches 2  schedule zb-v }",)),
    ],
)
def test_a_language_model_trains_as_on_one_device(model: str, method: str, mesh: str, lines: Sequence[str]) -> None:
    text = plan(model, mesh, *_plan(mesh, method, *lines).split("\n")[1:])
    assert_equal(_case(model), text)
    assert prove(compiled(_case(model), text).program).safe


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "ring_all_to_all", "ring_all_to_all  layout zigzag"])
@pytest.mark.parametrize(("mesh", "tokens"), [("a=2, cp=2", "a, cp"), ("cp=2, a=2", "a, cp"), ("a=2, cp=2", "cp, a")])
def test_tokens_may_be_cut_over_two_axes_in_any_order(mesh: str, tokens: str, method: str) -> None:
    assert_equal(_case("gpt"), _plan(mesh, method, tokens=f"dim 1 over {tokens}", over=tokens))


def _refused(plan: str, tokens: int = 8, nest: str = 'cp = "shard(2)"') -> StrettoError:
    """What is said of attention over four heads of an input that is cut as `nest` says."""
    whole = f"tensor<2x4x{tokens}x4xf32>"
    placed = f"{whole[:-1]}, {{{nest}}}>"
    parsed = Plan.parse(plan)
    mesh = ", ".join(f'["{axis}", {size}]' for axis, size in parsed.mesh.axes)
    text = f"""module attributes {{comm.level = "aten", comm.mesh = [{mesh}]}} {{
      func.func @main(%q: {placed} {{aten.argument = {{index = 0, kind = "input", name = "q"}}}}) -> {whole} {{
        %0:2 = "nn.attention"(%q, %q, %q) {{causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>}}
          : ({placed}, {placed}, {placed}) -> ({whole}, tensor<2x4x{tokens}xf32>) loc(fused["mix", "model.py":7:0])
        return %0#0 : {whole}
      }}
    }}"""
    with pytest.raises(StrettoError) as caught:
        ChooseAttention(parsed).run(Module.parse(text))
    assert caught.value.code == "E0406"
    return caught.value


def test_tokens_that_have_no_two_parts_for_each_rank_are_refused_for_zigzag() -> None:
    error = _refused(_plan("cp=2", ZIGZAG), tokens=6)
    assert error.message == 'input "q" has 6 tokens, which 2 ranks over cp cannot share zigzag'
    assert error.expected == "expected a multiple of 4: two parts for each rank"


def test_two_layouts_of_the_same_tokens_are_refused() -> None:
    plan = _plan("a=2, cp=2", ZIGZAG, "attention over a { method ring }", tokens="dim 1 over a, cp")
    error = _refused(plan, nest='a = "shard(2)", cp = "shard(2)"')
    assert error.message == 'tokens of input "q" are cut over a, cp, of which a is not zigzag'
    assert error.help == "name a, cp in one attention statement, or write layout contiguous"


def test_heads_are_exchanged_inside_of_a_zigzag_ring_only() -> None:
    plan = _plan("a=2, cp=2", "ring_all_to_all  layout zigzag", tokens="dim 1 over cp, a", over="a, cp")
    error = _refused(plan, nest='a = "shard(2, 1)", cp = "shard(2, 0)"')
    assert error.message == 'tokens of input "q" are cut over cp, a, of which cp is not zigzag'


def test_tokens_that_a_ring_cannot_divide_are_refused_where_they_meet_it() -> None:
    """Inputs are refused before (E0401), but for those whose dims are dynamic."""
    error = _refused(_plan("cp=2", "ring"), tokens=9)
    assert str(error.span) == "model.py:7:1"
    assert "queries of 9 tokens, which the ring of 2 ranks over cp cannot divide" in error.message


@pytest.mark.slow
def test_chunks_that_ranks_cannot_share_are_refused_at_the_line_of_their_sum() -> None:
    with pytest.raises(StrettoError) as caught:
        compiled_model(LinearAttention(4), {"x": torch.zeros(BATCH, N, 16)}, _plan("cp=4", "state"), loss_only=True)
    assert caught.value.code == "E0406"
    assert "adds up 2 parts of the tokens, which 4 ranks over cp cannot share" in caught.value.message
    assert caught.value.help == "take shorter chunks, or fewer ranks"


def test_more_ranks_than_heads_are_refused_at_the_line_of_the_attention() -> None:
    error = _refused(_plan("cp=8", "all_to_all"))
    assert error.message == "attention in mix has 4 heads, which 8 ranks over cp cannot share evenly"
    assert str(error.span) == "model.py:7:1"
    assert error.help == "make cp smaller, or write method gather"


@pytest.mark.slow
def test_ranks_that_heads_are_cut_over_already_count() -> None:
    with pytest.raises(StrettoError) as caught:
        x = {"x": torch.zeros(BATCH, N, 16)}
        compiled_model(GroupedAttention(4, 2), x, _plan("cp=4, tp=2", "all_to_all", HEADS_OVER_TP))
    assert "4 heads, which 8 ranks over tp, cp cannot share evenly" in caught.value.message
