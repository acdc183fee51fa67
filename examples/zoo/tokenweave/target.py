"""A small GPT with RMS norms for the plan beside this file."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))  # examples/gpt.py

from gpt import GPT, Config


def model() -> tuple[nn.Module, dict[str, Any]]:
    """Two layers of two heads; each layer norm is an RMS norm."""
    config = Config(vocabulary=32, hidden=16, layers=2, heads=2, positions=8)
    gpt = GPT(config)
    for parent in list(gpt.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, nn.RMSNorm(config.hidden, eps=1e-6))
    tokens, targets = torch.randint(0, config.vocabulary, (2, 2, 8))
    return gpt, {"tokens": tokens, "targets": targets}
