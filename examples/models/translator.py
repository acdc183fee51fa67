"""An encoder-decoder transformer with cross-attention, in plain PyTorch.

stretto compile examples/models/translator.py:translator --plan examples/plans/dp_tp.plan -o program
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING = 0
"""The token that fills short sequences; no position attends to it in the source, and no loss counts it."""


class Attention(nn.Module):
    """Attention of `x` (batch, tokens, hidden) to `memory` (batch, source tokens, hidden)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(hidden, hidden) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """As `x`; `mask` (batch, 1, 1, source tokens) is true where `memory` may be looked at."""
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention and MLP, norms after each sum."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.attention_norm = nn.LayerNorm(hidden)
        self.up_proj = nn.Linear(hidden, 2 * hidden)
        self.down_proj = nn.Linear(2 * hidden, hidden)
        self.mlp_norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, source tokens, hidden) to the same."""
        x = self.attention_norm(x + self.attention(x, x, mask))
        return self.mlp_norm(x + self.down_proj(F.relu(self.up_proj(x))))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, and MLP, norms after each sum."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.attention_norm = nn.LayerNorm(hidden)
        self.cross = Attention(hidden, heads)
        self.cross_norm = nn.LayerNorm(hidden)
        self.up_proj = nn.Linear(hidden, 2 * hidden)
        self.down_proj = nn.Linear(2 * hidden, hidden)
        self.mlp_norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """(batch, tokens, hidden) to the same."""
        x = self.attention_norm(x + self.attention(x, x, causal=True))
        x = self.cross_norm(x + self.cross(x, memory, mask))
        return self.mlp_norm(x + self.down_proj(F.relu(self.up_proj(x))))


class Translator(nn.Module):
    """Source and target tokens to scores, or with labels to the mean cross-entropy (nats a token)."""

    def __init__(self, *, vocabulary: int = 64, hidden: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, hidden, padding_idx=PADDING)
        self.embed_positions = nn.Embedding(32, hidden)
        self.encoder = nn.ModuleList(EncoderLayer(hidden, heads) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(hidden, heads) for _ in range(layers))
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, source: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores (batch, tokens, vocabulary), or the loss."""
        mask = (source != PADDING)[:, None, None]
        mask = mask | ~mask.any(-1, keepdim=True)
        memory = self._embed(source)
        for layer in self.encoder:
            memory = layer(memory, mask)
        x = self._embed(target)
        for layer in self.decoder:
            x = layer(x, memory, mask)
        scores: Tensor = self.lm_head(x)
        return scores if labels is None else F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=0)

    def _embed(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.embed_tokens(tokens) + self.embed_positions(positions)


def translator() -> tuple[nn.Module, dict[str, Any]]:
    """A small one with a batch of four pairs of sentences."""
    source, labels = torch.randint(0, 64, (4, 12)), torch.randint(0, 64, (4, 10))
    return Translator(layers=1), {"source": source, "target": labels.roll(1, 1), "labels": labels}
