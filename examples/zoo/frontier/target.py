"""A stack of MLPs for the plan beside this file."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))  # examples/mlp.py

from mlp import MLP, Config


def model() -> tuple[nn.Module, dict[str, Any]]:
    """Two layers; the batch divides by four ranks."""
    x, wanted = torch.randn(2, 4, 8)
    return MLP(Config(width=8, layers=2)), {"x": x, "wanted": wanted}
