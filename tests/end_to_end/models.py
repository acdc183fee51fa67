"""Models that are compiled and checked from end to end: a plain GPT and tiny Hugging Face ones, with one batch each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention with separate projections, each without or with a bias."""

    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, heads * head)
        self.k_proj = nn.Linear(width, heads * head, bias=False)
        self.v_proj = nn.Linear(width, heads * head)
        self.o_proj = nn.Linear(heads * head, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        q, k, v = (
            p(x).view(batch, seq, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(attended.transpose(1, 2).reshape(batch, seq, -1))


class Block(nn.Module):
    """Pre-norm attention and a feed-forward, both residual."""

    def __init__(self, width: int, heads: int, head: int, inner: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, head)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class GPT(nn.Module):
    """A decoder with learned positions; the loss when targets are given, else the logits."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, heads = size.width, size.heads
        self.wte = nn.Embedding(size.vocab, width)
        self.wpe = nn.Embedding(size.seq, width)
        self.blocks = nn.ModuleList(Block(width, heads, size.head, size.inner) for _ in range(size.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, size.vocab, bias=False)
        if size.tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Size:
    """Extents of a model and its batch; heads of `head` elements, so that `width` may be odd."""

    vocab: int = 40
    width: int = 16
    heads: int = 4
    head: int = 4
    inner: int = 24
    layers: int = 2
    batch: int = 4
    seq: int = 8
    tied: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """A model, one call of it by keywords, and which of the inputs are labels. A case equals only itself."""

    model: nn.Module
    inputs: dict[str, Tensor]
    labels: str
    vocab: int

    @property
    def about(self) -> dict[str, Any]:
        """What a check needs to know of the inputs; an eighth of the labels are ignored."""
        return {name: {"high": self.vocab, "ignore_index": name == self.labels} for name in self.inputs}

    def without_labels(self) -> Case:
        """The call that returns logits."""
        return Case(self.model, {k: v for k, v in self.inputs.items() if k != self.labels}, self.labels, self.vocab)


def gpt(size: Size) -> Case:
    """The plain GPT above."""
    return Case(GPT(size), {"tokens": _indices(size), "targets": _indices(size)}, "targets", size.vocab)


def llama(size: Size) -> Case:
    """Hugging Face Llama; half as many heads for keys and values where that is whole, the width whole per head."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=-(-size.width // size.heads) * size.heads,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2 if size.heads % 2 == 0 else size.heads,
        head_dim=size.head,
        max_position_embeddings=size.seq,
        tie_word_embeddings=size.tied,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
    )
    return _hugging_face(transformers.LlamaForCausalLM, config, size)


def gpt2(size: Size) -> Case:
    """Hugging Face GPT-2 without dropout; its head is tied to the embedding."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=size.vocab,
        n_embd=size.heads * size.head,
        n_inner=size.inner,
        n_layer=size.layers,
        n_head=size.heads,
        n_positions=size.seq,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=1,
    )
    return _hugging_face(transformers.GPT2LMHeadModel, config, size)


def bert(size: Size) -> Case:
    """Hugging Face BERT: an encoder with norms behind its residuals, labels that are not shifted."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=size.vocab,
        hidden_size=-(-size.width // size.heads) * size.heads,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.seq,
        tie_word_embeddings=size.tied,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _hugging_face(transformers.BertForMaskedLM, config, size)


MODELS = {"gpt": gpt, "llama": llama, "gpt2": gpt2}


def plan(model: str, mesh: str, *lines: str) -> str:
    """A plan's text: the mesh, Megatron's placements over `tp` where the mesh has it, and other statements."""
    parameters = _PARAMETERS[model] if "tp" in mesh else ()
    return "\n".join([f"mesh ({mesh})", *parameters, *lines])


_PARAMETERS = {
    "gpt": (
        'shard "*.{q,k,v}_proj", "*.up" columns over tp',
        'shard "*.o_proj", "*.down" rows over tp',
        'shard "wte", "head" vocab over tp',
    ),
    "llama": (
        'shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp',
        'shard "*.o_proj", "*.down_proj" rows over tp',
        'shard "*.embed_tokens", "lm_head" vocab over tp',
    ),
    "gpt2": (
        'shard "*.c_attn", "*.c_fc" columns over tp',
        'shard "*.c_proj" rows over tp',
        'shard "*.wte" vocab over tp',
    ),
}


def _indices(size: Size) -> Tensor:
    return torch.zeros(size.batch, size.seq, dtype=torch.int64)


def _hugging_face(kind: Any, config: Any, size: Size) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(config)
    return Case(model, {"input_ids": _indices(size), "labels": _indices(size)}, "labels", size.vocab)
