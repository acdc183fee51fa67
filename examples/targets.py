"""Models for the command line.

stretto compile examples/targets.py:gpt --plan examples/plans/dp_tp.plan -o program
"""

from typing import Any

import torch
from gpt import GPT, Config
from torch import nn

BATCH, SEQ = 4, 32

Target = tuple[nn.Module, dict[str, Any]]


def gpt() -> Target:
    """A plain PyTorch GPT with tied embeddings."""
    config = Config(hidden=64, layers=2, positions=SEQ)
    shape = (BATCH, SEQ)
    tokens, targets = torch.randint(0, config.vocabulary, (2, *shape))
    return GPT(config), {"tokens": tokens, "targets": targets}


def llama() -> Target:
    """Hugging Face's Llama: 257 tokens and a grouped attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=SEQ,
    )
    return LlamaForCausalLM(config), _tokens(config.vocab_size)


def gpt2() -> Target:
    """Hugging Face's GPT-2 without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=257,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=SEQ,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=256,
        eos_token_id=256,
    )
    return GPT2LMHeadModel(config), _tokens(config.vocab_size)


def _tokens(vocabulary: int) -> dict[str, Any]:
    ids = torch.randint(0, vocabulary, (BATCH, SEQ))
    return {"input_ids": ids, "labels": ids.clone()}
