"""A small GPT for the plan beside this file."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))  # examples/gpt.py

from gpt import GPT, Config


def model() -> tuple[nn.Module, dict[str, Any]]:
    """Two layers of two heads."""
    config = Config(vocabulary=32, hidden=16, layers=2, heads=2, positions=8)
    tokens, targets = torch.randint(0, config.vocabulary, (2, 4, 8))
    return GPT(config), {"tokens": tokens, "targets": targets}
