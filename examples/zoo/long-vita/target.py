"""A small GPT for the plan beside this file, trained on the answers at the end of its sequences."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))  # examples/gpt.py

from gpt import GPT, Config

QUESTION = 10


def model() -> tuple[nn.Module, dict[str, Any]]:
    """Two layers of four heads; sequences of 16 tokens, of which the first 10 are a question."""
    config = Config(vocabulary=32, hidden=16, layers=2, heads=4, positions=16)
    tokens, targets = torch.randint(0, config.vocabulary, (2, 4, 16))
    targets[:, :QUESTION] = -100
    return GPT(config), {"tokens": tokens, "targets": targets}
