"""A small GPT of experts for the plan beside this file."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))  # examples/gpt_of_experts.py

from gpt import Config
from gpt_of_experts import gpt_of_experts


def model() -> tuple[nn.Module, dict[str, Any]]:
    """Two layers of two heads and four experts."""
    config = Config(vocabulary=32, hidden=16, layers=2, heads=2, positions=8)
    tokens, targets = torch.randint(0, config.vocabulary, (2, 4, 8))
    return gpt_of_experts(config), {"tokens": tokens, "targets": targets}
