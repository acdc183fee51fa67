"""Tiny models for the tests of passes: a plain GPT, Hugging Face's Llama and GPT-2, captured for training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, InputKind, Mode
from torch import Tensor, nn

VOCABULARY, BATCH, SEQUENCE, LAYERS = 61, 2, 6, 2
SEED = 0


class Block(nn.Module):
    """Attention and a feed-forward part, normalized before and added to what came in."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(size), nn.LayerNorm(size)
        self.mix, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, size = x.shape
        parts = self.mix(self.before(x)).view(batch, tokens, 3, self.heads, size // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, size))
        return x + self.down(F.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    """A language model whose forward returns the mean loss over labels that are not negative."""

    def __init__(self, size: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, size), nn.Embedding(SEQUENCE, size)
        self.blocks = nn.ModuleList(Block(size, heads) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten(), ignore_index=-1)


def llama() -> nn.Module:
    """Hugging Face's Llama with grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=SEQUENCE,
            use_cache=False,
        )
    )


def gpt2() -> nn.Module:
    """Hugging Face's GPT-2 without dropout; head and embedding are tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=24,
            n_layer=LAYERS,
            n_head=3,
            vocab_size=VOCABULARY,
            n_positions=SEQUENCE,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"gpt": GPT, "llama": llama, "gpt2": gpt2}


@cache
def captured(name: str) -> Capture:
    """The training step of a model, its loss as the only output."""
    torch.manual_seed(SEED)
    ids = torch.zeros(BATCH, SEQUENCE, dtype=torch.int64)
    return capture(MODELS[name](), (), {"input_ids": ids, "labels": ids}, mode=Mode.TRAIN, loss_only=True)


def random_inputs(step: Capture) -> list[Tensor]:
    """Random values in float64 for the step's inputs, small enough that no softmax saturates."""
    generator = torch.Generator().manual_seed(SEED)
    made: list[Tensor] = []
    for tensor in step.inputs:
        if not tensor.dtype.is_floating_point:
            made.append(torch.randint(0, VOCABULARY, tensor.shape, generator=generator))
        elif tensor.kind is InputKind.TANGENT:
            made.append(torch.full(tensor.shape, 0.7, dtype=torch.float64))
        else:
            made.append(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.3)
    return made
