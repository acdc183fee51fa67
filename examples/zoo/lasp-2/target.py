"""A hybrid of linear and softmax attention for the plan beside this file."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, CHUNK = 4, 4


class LinearAttention(nn.Module):
    """Causal linear attention in chunks: within a chunk by products of queries and keys, before it by a state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        q, k, v = (part.unflatten(2, (-1, CHUNK)) for part in (q, k, v))  # (batch, heads, chunks, tokens, head)
        states = k.transpose(-1, -2) @ v
        before = states.cumsum(2) - states
        y = q @ before + (q @ k.transpose(-1, -2)).tril() @ v
        mixed: Tensor = self.out(y.flatten(2, 3).transpose(1, 2).flatten(2))
        return mixed


class SoftmaxAttention(nn.Module):
    """Standard causal attention."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention of one kind and a feed-forward, both residual."""

    def __init__(self, hidden: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp_norm = nn.RMSNorm(hidden), attention, nn.RMSNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Hybrid(nn.Module):
    """A language model of a linear and a softmax layer; returns the loss."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList([Block(hidden, kind(hidden)) for kind in (LinearAttention, SoftmaxAttention)])
        self.head = nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def model() -> tuple[nn.Module, dict[str, Any]]:
    """Chunks of four tokens, two for each of four ranks."""
    tokens, targets = torch.randint(0, 32, (2, 2, 32))
    return Hybrid(32, 16), {"tokens": tokens, "targets": targets}
