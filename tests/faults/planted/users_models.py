"""What a user has: a file with small models, and plans. Faults are planted while commands work on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODELS = '''"""Small models, each with what some fault needs in order to show."""

import random

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(width, width)
        self.drop = nn.Dropout(0.25)

    def forward(self, x):
        batch, seq, width = x.shape
        y = self.norm(x)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(y).view(batch, seq, self.heads, -1).transpose(1, 2) for project in projections)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.drop(self.o_proj(y.transpose(1, 2).reshape(batch, seq, width)))


class GPT(nn.Module):
    """Two layers, an embedding tied to the head, 13 words, which two ranks do not divide."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.layers = nn.ModuleList([Block(8, 2) for _ in range(2)])
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def gpt():
    tokens = torch.arange(24).remainder(13).reshape(4, 6)
    return GPT(), {"tokens": tokens, "targets": (tokens + 3) % 13}


class Norms(nn.Module):
    """Batch norm, a running mean of its own under no_grad, a tensor made in the forward, two losses."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)
        self.average = nn.BatchNorm1d(6, momentum=None)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x, y):
        hidden = torch.tanh(self.norm(self.up(x)))
        with torch.no_grad():
            self.seen.mul_(0.5).add_(hidden.detach().mean(0))
            centre = self.down(hidden).mean()
        scaled = torch.add(x, self.average(self.down(hidden)), alpha=0.5)
        weights = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
        error = (scaled - centre - y).square()
        return {"loss": (error * weights.to(error.dtype)).mean(), "size": hidden.square().sum()}


def norms():
    return Norms(), {"x": torch.randn(8, 6), "y": torch.randn(8, 6)}


class Draws(nn.Module):
    """A draw of every kind."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.alpha, self.feature = nn.AlphaDropout(0.25), nn.Dropout1d(0.5)

    def forward(self, x):
        hidden = self.alpha(self.up(x))
        hidden = hidden + 0.1 * torch.randn_like(hidden) + 0.1 * torch.rand_like(hidden)
        keys = self.feature(hidden)
        q, k, v = (part[:, None] for part in (hidden, keys, hidden))
        hidden = hidden + F.scaled_dot_product_attention(q, k, v, dropout_p=0.25, is_causal=True)[:, 0]
        kept = torch.bernoulli(torch.sigmoid(hidden.detach()) * 0.5 + 0.25)
        waits = torch.empty_like(hidden).exponential_(2.0)
        shift = torch.randint(2, 7, (1, 5, 1)).to(hidden.dtype)
        order = torch.randperm(5)
        return (self.down(hidden * kept + waits) * shift)[:, order].square().mean()


def draws():
    return Draws(), {"x": torch.randn(4, 5, 6)}


class Wide(nn.Module):
    """A dropout over 160,000 elements."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(40000))

    def forward(self, x):
        return (F.dropout(x * self.scale, 0.25) * x).mean()


def wide():
    return Wide(), {"x": torch.randn(4, 40000)}


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Rounds(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return (self.down(StraightThrough.apply(4 * self.up(x))) - x).square().mean()


def straight_through():
    return Rounds(), {"x": torch.randn(8, 6)}


def hooked():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0), Mean())
    model[0].register_full_backward_hook(lambda module, inputs, outputs: None)
    model[1].register_full_backward_hook(lambda module, inputs, outputs: tuple(2 * part for part in inputs))
    return model, {"input": torch.randn(8, 6)}


class Mean(nn.Module):
    def forward(self, x):
        return x.square().mean()


class SkipsLayers(nn.Module):
    """Layers count half or whole, as Python's random numbers say."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])

    def forward(self, x):
        for layer in self.layers:
            x = (0.5 if random.random() < 0.5 else 1.0) * torch.tanh(layer(x)) + x
        return x.square().mean()


def skips_layers():
    return SkipsLayers(), {"x": torch.randn(8, 6)}


class Half(nn.Module):
    """A layer in full precision inside a forward in bfloat16."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = torch.tanh(self.up(x))
            with torch.autocast("cpu", enabled=False):
                hidden = self.down(hidden.to(x.dtype))
        return (hidden - x).square().mean()


def half():
    return Half(), {"x": torch.randn(8, 16)}


class Calls(nn.Module):
    """Running sums beside the loss, and a constant of the call."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, sharp=False):
        first = self.a(x) + self.b(x)
        second = first + self.c(x)
        return torch.tanh(second * (4.0 if sharp else 1.0)).square().mean(), first, second


def calls():
    return Calls(), {"x": torch.randn(8, 8)}


class Differentiated(nn.Module):
    """Two inputs that require gradients."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 6)

    def forward(self, x, y):
        return (torch.tanh(self.up(x)) * y).square().mean()


def differentiated():
    x, y = (torch.randn(8, 6, requires_grad=True) for _ in range(2))
    return Differentiated(), {"x": x, "y": y}


class Table(nn.Module):
    """A table of as many rows as the batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x, y, table):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return ((x @ table.t()).logsumexp(-1) - y).square().mean()


def table():
    return Table(), {"x": torch.randn(8, 6), "y": torch.randn(8), "table": torch.randn(8, 6)}


class Peak(nn.Module):
    """A maximum of what is never below 0."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 7)

    def forward(self, x):
        return self.up(x).square().amax(-1).sum()


def peak():
    return Peak(), {"x": torch.randn(8, 8)}


class Steep(nn.Module):
    """Logits of which exponentials overflow."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 6), nn.Linear(6, 8, bias=False)
        self.head.weight.data.mul_(1000)

    def forward(self, tokens, targets):
        return F.cross_entropy(self.head(self.embed(tokens)).flatten(0, 1), targets.flatten())


class Masked(nn.Module):
    """Keys that a mask hides, words of which one is padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(300, 8, padding_idx=7), nn.Linear(8, 300, bias=False)

    def forward(self, tokens, targets, keep):
        x = self.embed(tokens)[:, None]
        x = F.scaled_dot_product_attention(x, x, x, attn_mask=keep[:, None, None, :])[:, 0]
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def masked():
    tokens = torch.arange(32).reshape(4, 8)
    return Masked(), {"tokens": tokens, "targets": (tokens + 3) % 300, "keep": tokens % 8 < 6}


class Magnitudes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.out(torch.complex(self.a(x), self.b(x)).abs()).square().mean()


def magnitudes():
    return Magnitudes(), {"x": torch.randn(8, 8)}


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        rows = x.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 8, 1)
        out = torch.bmm(self.experts[chosen.reshape(-1)], rows).view(-1, 2, 8)
        return ((out * weights.unsqueeze(-1)).sum(1) - x).square().mean()


def routed():
    return Routed(), {"x": torch.randn(32, 8)}


def steep():
    tokens = torch.arange(32).reshape(8, 4) % 8
    return Steep(), {"tokens": tokens, "targets": (tokens + 3) % 8}
'''

_TENSOR = 'mesh (tp=2)\nshard "*.{q,k,v}_proj" columns over tp\nshard "*.o_proj" rows over tp\n'
PLANS = {
    "dp_tp": """mesh (dp=2, tp=2)
shard "*.{q,k,v}_proj" columns over tp
shard "*.o_proj" rows over tp
shard "embed" vocab over tp
""",
    "over": """mesh (tp=2)
shard "layers.*.{q,k,v}_proj" rows over tp
shard "*.q_proj" columns over tp
""",
    "pp": """mesh (pp=2, dp=2)
pipeline over pp { schedule 1f1b  microbatches 2 }
""",
    "zb": """mesh (pp=2)
pipeline over pp { schedule zb-h1  microbatches 4 }
""",
    "gpipe": """mesh (pp=2)
pipeline over pp { schedule gpipe  microbatches 2 }
""",
    "written": """mesh (pp=2)
pipeline over pp { schedule mine  microbatches 4 }
schedule mine(stages p, microbatches m) {
  stage s {
    warmup  min(p - s, m) { F }
    steady  m - min(p - s, m) { B W F }
    drain   { B W }
  }
}
""",
    "dp": "mesh (dp=2)\n",
    "short": "mesh (dp=2)\nprecision { params fp32  compute bf16 }\n",
    "alone": """mesh (pp=2)
pipeline over pp { microbatches 2  per microbatch }
""",
    "alone in short": """mesh (pp=2)
shard inputs "*" batch
pipeline over pp { microbatches 2  per microbatch }
precision { params fp32  compute bf16  reduce fp32 }
""",
    "whole": """mesh (pp=2)
shard inputs "*" batch
shard inputs "table" whole
pipeline over pp { microbatches 2  per microbatch }
""",
    "dp4": "mesh (dp=4)\n",
    "both": """mesh (dp=2, tp=2)
shard "up" columns over tp
shard "down" rows over tp
""",
    "inner": 'mesh (tp=2)\nshard "*.mlp.c_fc" columns over tp\n',
    "up": 'mesh (tp=2)\nshard "up" columns over tp\n',
    "words": 'mesh (tp=2)\nshard "embed", "head" vocab over tp\n',
    "sequence": """mesh (tp=2)
shard "*.{q,k,v}_proj" columns over tp
shard "*.o_proj" rows over tp
shard activations tokens over tp
""",
    "ring": """mesh (cp=3)
shard inputs dim 1 over cp
attention over cp { method ring }
""",
    "zigzag": """mesh (cp=3)
shard inputs dim 1 over cp
attention over cp { method ring  layout zigzag }
""",
    "context": """mesh (cp=2)
shard inputs dim 1 over cp
attention over cp { method ring }
""",
    "bounded": 'mesh (dp=2)\nexperts "experts" over dp { bound 1.9 }\n',
    "loss in 4": "mesh (dp=2)\nsplit loss into 4\n",
    "turns": _TENSOR + "split batch into 2 { order interleave }\n",
    "3 and 1": _TENSOR + "split batch into 2 { sizes 3, 1 }\n",
    "but attention": 'mesh (dp=2)\nrecompute "layers.*" { except attention }\n',
    "fused": _TENSOR + "shard activations tokens over tp\noverlap { fuse all_gather+matmul, matmul+reduce_scatter }\n",
    "buckets": "mesh (dp=2)\nzero 3 over dp { bucket 25KB }\noverlap { memory +1000% }\n",
    "nodes": "mesh (node=2, gpu=2)\naxes dp = node, gpu\nzero 3 over dp { within gpu }\n",
    "both ways": """mesh (cp=3)
shard inputs dim 1 over cp
attention over cp { method bidirectional  layout zigzag }
""",
    "two": """mesh (a=2, b=2)
shard "embed" vocab over a, b
""",
}


CONFIGS = {
    "gpt2": """{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1,
"n_positions": 16, "vocab_size": 20, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
"""
}


@dataclass(frozen=True)
class Case:
    """A model of the file, or "hf:" and a config, under a plan."""

    model: str
    plan: str
    options: tuple[str, ...] = ("--dtype", "float64")
    """Of `stretto compile`."""

    def __str__(self) -> str:
        return f"{self.model} under {self.plan}"


def write_models(folder: Path) -> None:
    """The file of models, and a file for each plan and config."""
    (folder / "models.py").write_text(MODELS)
    for name, text in CONFIGS.items():
        (folder / f"{name}.json").write_text(text)
    for name, text in PLANS.items():
        (folder / f"{name}.plan").write_text(text)
