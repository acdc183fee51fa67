"""A Llama with a static cache, as two entries of one program: the prompt at once, then one token at a time.

    stretto compile examples/decoding.py:llama --plan examples/plans/decoding.plan -o program \
        --mode infer --states "*.keys" --states "*.values"
    python examples/decoding.py program            # or: torchrun --nproc-per-node 2 examples/decoding.py program

The script needs no compiler and not the model's class: it runs what is in the folder.
"""

from __future__ import annotations

import argparse
from typing import Any

import stretto
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN, HEADS, KEY_HEADS, LAYERS, VOCABULARY = 64, 8, 4, 4, 96
HEAD = HIDDEN // HEADS
BATCH, PROMPT, LENGTH = 2, 8, 24


class Attention(nn.Module):
    """Grouped-query attention to all positions so far, whose keys and values stay in buffers."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(HIDDEN, KEY_HEADS * HEAD, bias=False) for _ in range(2))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(BATCH, KEY_HEADS, LENGTH, HEAD))

    def forward(self, x: Tensor, positions: Tensor, angles: Tensor) -> Tensor:
        """(batch, tokens, hidden), the tokens' positions (tokens,), and rotary angles (tokens, head / 2)."""
        q = rotated(self.q(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2), angles)
        k = rotated(self.k(x).unflatten(-1, (KEY_HEADS, HEAD)).transpose(1, 2), angles)
        v = self.v(x).unflatten(-1, (KEY_HEADS, HEAD)).transpose(1, 2)
        self.keys.index_copy_(2, positions, k)
        self.values.index_copy_(2, positions, v)
        seen = torch.arange(LENGTH)[None, :] <= positions[:, None]
        y = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=seen, enable_gqa=True)
        return self.o(y.transpose(1, 2).flatten(2))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of the halves of each head."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Block(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
        self.attention = Attention()
        self.gate, self.up = (nn.Linear(HIDDEN, 2 * HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor, positions: Tensor, angles: Tensor) -> Tensor:
        """See `Attention`."""
        x = x + self.attention(self.attention_norm(x), positions, angles)
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """A decoder with two more methods, which become entries."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.register_buffer("frequencies", 10000.0 ** (torch.arange(0, HEAD, 2) / -HEAD))

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary)."""
        x = self.embed(tokens)
        angles = positions[:, None] * self.frequencies
        for layer in self.layers:
            x = layer(x, positions, angles)
        return self.head(self.norm(x))

    def prefill(self, tokens: Tensor) -> Tensor:
        """Logits of a prompt's last token (batch, 1, vocabulary)."""
        return self(tokens, torch.arange(tokens.shape[1]))[:, -1:]

    def decode(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits after one more token (batch, 1) at a position (1,)."""
        return self(token, position)


def llama() -> tuple[nn.Module, dict[str, Any]]:
    """The model, and its entries with an example of their inputs."""
    torch.manual_seed(0)
    model = Llama()
    prompt, token = torch.zeros(BATCH, PROMPT, dtype=torch.int64), torch.zeros(BATCH, 1, dtype=torch.int64)
    return model, {
        "prefill": (model.prefill, {"tokens": prompt}),
        "decode": (model.decode, {"token": token, "position": torch.tensor([LENGTH - 1])}),
    }


def generate(program: stretto.LoadedProgram, prompt: Tensor, tokens: int) -> Tensor:
    """The most probable next tokens, one after the other (batch, tokens)."""
    [logits] = program.run("prefill", tokens=prompt)
    found = []
    for position in range(prompt.shape[1], prompt.shape[1] + tokens):
        found.append(logits.argmax(-1))
        [logits] = program.run("decode", token=found[-1], position=torch.tensor([position]))
    return torch.cat(found, 1)


def main() -> None:
    """Generate tokens from a folder."""
    parser = argparse.ArgumentParser(description="Generate tokens with a program of two entries.")
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    prompt = torch.arange(BATCH * PROMPT).reshape(BATCH, PROMPT) % VOCABULARY
    with stretto.load_program(folder) as program, torch.no_grad():
        tokens = generate(program, prompt, LENGTH - PROMPT)
        print(f"{program.copied_state_bytes} bytes of the cache were copied")
        for row in tokens.tolist():
            print(*row)


if __name__ == "__main__":
    main()
