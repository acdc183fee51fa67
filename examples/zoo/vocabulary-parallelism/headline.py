"""The model of the published runs: a GPT with flash attention, 128 microbatches of one sequence each."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))  # examples/gpt.py

from gpt import GPT, Config


def gpt(vocabulary: int) -> tuple[nn.Module, dict[str, Any]]:
    """A GPT of 4 billion parameters beside its vocabulary, whose head has weights of its own."""
    made = GPT(Config(vocabulary, 3072, 32, 24, 2048))
    made.lm_head = nn.Linear(3072, vocabulary, bias=False)
    tokens, targets = torch.zeros(2, 128, 2048, dtype=torch.int64)
    return made, {"tokens": tokens, "targets": targets}


def gpt_32k() -> tuple[nn.Module, dict[str, Any]]:
    """With 32,000 tokens."""
    return gpt(32000)


def gpt_64k() -> tuple[nn.Module, dict[str, Any]]:
    """With 64,000 tokens."""
    return gpt(64000)


def gpt_128k() -> tuple[nn.Module, dict[str, Any]]:
    """With 128,000 tokens."""
    return gpt(128000)


def gpt_256k() -> tuple[nn.Module, dict[str, Any]]:
    """With 256,000 tokens."""
    return gpt(256000)
