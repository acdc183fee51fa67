"""With tokens cut over an axis, nothing outside of attention is gathered, and a rank does its share of the work."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from stretto.driver.compile.request import Compiled
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import only, some
from .checking import assert_report, compiled, compiled_model
from .models import MODELS, Case, Size, bert
from .traffic import Message, messages
from .work import flops_of

SIZE = {"vocab": 44, "width": 16, "heads": 4, "head": 4, "inner": 24, "layers": 2, "seq": 8}
TOKENS = "mesh (cp=2)\nshard inputs dim 1 over cp"
EACH_BATCH = pytest.mark.parametrize("batch", only([1], [1, 4]))


@cache
def _case(model: str, batch: int) -> Case:
    return {**MODELS, "bert": bert}[model](Size(batch=batch, **SIZE))


@cache
def _sharded(model: str, batch: int) -> Compiled:
    return compiled(_case(model, batch), TOKENS)


def _moved(program: Compiled) -> list[Message]:
    """What crosses ranks, but for sums of gradients and statistics."""
    return [m for m in messages(program) if m.kind in ("all_gather", "all_to_all")]


def _in_attention(message: Message) -> bool:
    return any(part in message.module_path.split(".") for part in ("attention", "self_attn", "attn"))


@EACH_BATCH
@pytest.mark.parametrize("model", some("llama", "gpt", "bert"))
def test_a_language_model_trains_as_on_one_device_and_gathers_no_hidden_state_or_logits(model: str, batch: int) -> None:
    program = _sharded(model, batch)
    torch.manual_seed(0)
    assert_report(check(program.program))
    gathered = [m for m in _moved(program) if m.kind == "all_gather" and len(m.result_shape) > 2]
    assert [m for m in gathered if not _in_attention(m)] == []
    width, vocabulary = SIZE["width"], SIZE["vocab"]
    whole = [(batch, SIZE["seq"], width), (batch * SIZE["seq"], width), (batch, SIZE["seq"], vocabulary)]
    assert [m for m in _moved(program) if m.result_shape in whole] == []


@EACH_BATCH
@pytest.mark.parametrize("model", some("llama", "gpt", "bert"))
def test_a_rank_does_half_of_the_work(model: str, batch: int) -> None:
    alone = compiled(_case(model, batch), "mesh (cp=1)")
    assert flops_of(_sharded(model, batch)) == flops_of(alone) / 2


@EACH_BATCH
def test_a_fused_projection_moves_its_parts_inside_attention_alone(batch: int) -> None:
    program = _sharded("gpt2", batch)
    torch.manual_seed(0)
    assert_report(check(program.program))
    moved = [m for m in _moved(program) if m.kind == "all_gather" and not _in_attention(m)]
    assert [m.result_shape for m in moved] == [(batch, SIZE["seq"])]  # the labels, which are shifted by a token


class Attended(nn.Module):
    """A layer of torch's, in either order of its dims, and a loss."""

    def __init__(self, layer: str, *, batch_first: bool) -> None:
        super().__init__()
        self.encodes = layer == "encoder layer"
        self.layer: nn.Module = (
            nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=batch_first)
            if self.encodes
            else nn.MultiheadAttention(16, 4, batch_first=batch_first)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) if self.encodes else self.layer(x, x, x, need_weights=False)[0]
        loss: Tensor = y.square().mean()
        return loss


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layer", ["attention", "encoder layer"])
def test_layers_of_torch_move_nothing_over_a_data_axis(layer: str, batch_first: bool) -> None:
    model = Attended(layer, batch_first=batch_first)
    x = torch.zeros((4, 8, 16) if batch_first else (8, 4, 16))
    text = f"mesh (d=2)\nshard inputs dim {0 if batch_first else 1} over d"
    program = compiled_model(model, {"x": x}, text, loss_only=True)
    assert {m.kind for m in messages(program)} == {"all_reduce"}
    assert_report(check(program.program))


class GroupedAttention(nn.Module):
    """Causal attention whose keys and values have fewer heads, and a loss."""

    def __init__(self, heads: int, key_heads: int) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        self.q, self.o = nn.Linear(16, heads * 4, bias=False), nn.Linear(heads * 4, 16, bias=False)
        self.k, self.v = (nn.Linear(16, key_heads * 4, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (count, 4)).transpose(1, 2)
            for layer, count in ((self.q, self.heads), (self.k, self.key_heads), (self.v, self.key_heads))
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        loss: Tensor = (x + self.o(y.transpose(1, 2).flatten(2))).square().mean()
        return loss


HEADS_OVER_TP = 'shard "q", "k", "v" columns over tp\nshard "o" rows over tp'


@pytest.mark.parametrize(
    ("heads", "mesh"),
    only(
        [((6, 1), "(cp=4)"), ((4, 2), "(cp=2, tp=2)")],
        [((8, 2), "(cp=2)"), ((6, 1), "(cp=4)"), ((4, 2), "(cp=2, tp=2)"), ((4, 2), "(tp=2, cp=2)")],
    ),
)
def test_few_key_heads_are_gathered_and_queries_stay(heads: tuple[int, int], mesh: str) -> None:
    plan = f"mesh {mesh}\nshard inputs dim 1 over cp\n{HEADS_OVER_TP if 'tp' in mesh else ''}"
    program = compiled_model(GroupedAttention(*heads), {"x": torch.zeros(3, 8, 16)}, plan, loss_only=True)
    torch.manual_seed(0)
    assert_report(check(program.program))
    key_heads = heads[1] // (2 if "tp" in mesh else 1)
    assert {(m.kind, m.result_shape) for m in _moved(program)} == {("all_gather", (3, key_heads, 8, 4))}
