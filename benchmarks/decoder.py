"""A decoder of given sizes, as published training runs have them. Pricing it allocates no weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """A decoder's sizes, and how it is trained."""

    layers: int
    width: int
    heads: int
    key_heads: int
    ffn: int
    activation: str
    vocabulary: int
    tokens: int


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a norm."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads, self.key_heads, self.activation = s.heads, s.key_heads, s.activation
        size, gated = s.width // s.heads, s.activation in ("swiglu", "geglu")
        norm = nn.RMSNorm if gated else nn.LayerNorm
        self.before_attention, self.before_ffn = norm(s.width), norm(s.width)
        self.q_proj = nn.Linear(s.width, s.heads * size, bias=not gated)
        self.k_proj, self.v_proj = (nn.Linear(s.width, s.key_heads * size, bias=not gated) for _ in range(2))
        self.o_proj = nn.Linear(s.heads * size, s.width, bias=not gated)
        self.up_proj, self.down_proj = (
            nn.Linear(s.width, s.ffn, bias=not gated),
            nn.Linear(s.ffn, s.width, bias=not gated),
        )
        self.gate_proj = nn.Linear(s.width, s.ffn, bias=False) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.before_attention(x)
        q, k, v = (
            projection(y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection, heads in (
                (self.q_proj, self.heads), (self.k_proj, self.key_heads), (self.v_proj, self.key_heads)
            )
        )  # fmt: skip
        grouped = self.heads != self.key_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.o_proj(y.transpose(1, 2).flatten(2))
        y = self.before_ffn(x)
        if self.gate_proj is not None:
            gate = F.silu if self.activation == "swiglu" else F.gelu
            return x + self.down_proj(gate(self.gate_proj(y)) * self.up_proj(y))
        up = self.up_proj(y)
        return x + self.down_proj(F.relu(up).square() if self.activation == "sqrelu" else F.gelu(up))


class Decoder(nn.Module):
    """A language model with its loss."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.LayerNorm(s.width)
        self.lm_head = nn.Linear(s.width, s.vocabulary, bias=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.lm_head(self.norm(x)).float().flatten(0, 1), labels.flatten())
