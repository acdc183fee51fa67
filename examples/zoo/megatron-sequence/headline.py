"""The models of the published runs beside this file, with the attention of 2021: products, and a softmax between them.

Dropout stands where Megatron-LM has it: behind the softmax and both parts of a layer.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[2]))  # examples/gpt.py

from gpt import GPT, Attention, Config

SEQ = 2048
VOCABULARY = 51200
DROPOUT = 0.1


class Products(Attention):
    """Causal self-attention whose scores are in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix every token with those before it."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.transpose(-2, -1) / (q.shape[-1] ** 0.5)).masked_fill(ahead, -1e4)
        shares = F.dropout(scores.softmax(-1), DROPOUT)
        return F.dropout(self.o_proj((shares @ v).transpose(1, 2).flatten(2)), DROPOUT)


class Dropped(nn.Sequential):
    """A module and dropout behind it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, nn.Dropout(DROPOUT))


def gpt(hidden: int, layers: int, heads: int, batch: int) -> tuple[nn.Module, dict[str, Any]]:
    """A GPT and a batch for it."""
    made = GPT(Config(VOCABULARY, hidden, layers, heads, SEQ))
    for layer in made.layers:
        layer.attention.__class__ = Products
        layer.mlp.down_proj = Dropped(layer.mlp.down_proj)
    tokens, targets = torch.zeros(2, batch, SEQ, dtype=torch.int64)
    return made, {"tokens": tokens, "targets": targets}


def gpt_22b() -> tuple[nn.Module, dict[str, Any]]:
    """22 billion parameters, 4 sequences."""
    return gpt(6144, 48, 64, 4)
