"""A small GPT for the plan beside this file."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))  # examples/gpt.py

from gpt import GPT, Config


def model() -> tuple[nn.Module, dict[str, Any]]:
    """Two layers of four heads; the tokens have two parts for each of four ranks."""
    config = Config(vocabulary=32, hidden=16, layers=2, heads=4, positions=8)
    tokens, targets = torch.randint(0, config.vocabulary, (2, 2, 8))
    return GPT(config), {"tokens": tokens, "targets": targets}
