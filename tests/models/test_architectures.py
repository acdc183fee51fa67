"""Language models of transformers, small, under six plans: losses and gradients of two steps are those of eager mode.

`pytest -m slow tests/models/test_architectures.py` takes about an hour on two cores. Norms, rotary angles and losses of
these models are in float32 even where parameters are float64, so they agree to 2e-5 only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import stretto
import torch
from torch import Tensor, nn

TOLERANCE = 2e-5
BATCH, TOKENS = 4, 16
SIZES = {
    key: size
    for size, keys in {
        96: ("vocab_size",),
        64: ("max_position_embeddings", "n_positions"),
        48: ("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim"),
        32: ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size", "word_embed_proj_dim"),
        24: ("moe_intermediate_size",),
        8: ("head_dim", "d_kv", "sliding_window"),
        4: (
            "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
            "decoder_attention_heads", "rotary_dim", "num_experts", "num_local_experts", "n_routed_experts",
        ),
        2: (
            "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
            "num_key_value_heads", "num_experts_per_tok", "eos_token_id",
        ),
        1: (
            "n_shared_experts", "first_k_dense_replace", "n_group", "topk_group", "bos_token_id",
            "decoder_start_token_id",
        ),
        0: ("pad_token_id",),
    }.items()
    for key in keys
}  # fmt: skip
WITH_SDPA = (
    "albert", "apertus", "arcee", "bart", "bert", "biogpt", "codegen", "cohere", "cohere2", "ctrl", "diffllama",
    "distilbert", "electra", "ernie4_5", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt2", "gpt_neox", "gptj",
    "granite", "helium", "hunyuan_v1_dense", "lfm2", "mbart", "mistral", "modernbert", "mt5", "nemotron", "olmo",
    "olmo2", "opt", "pegasus", "persimmon", "phi", "phi3", "qwen2", "qwen3", "roberta", "seed_oss", "smollm3",
    "stablelm", "starcoder2", "umt5", "xlm-roberta",
)  # fmt: skip
WRITTEN_OUT = (
    "bloom", "deberta-v2", "dots1", "ernie4_5_moe", "falcon", "flex_olmo", "gemma2", "glm4_moe", "gpt_oss",
    "granitemoe", "hunyuan_v1_moe", "mamba", "minimax", "mpt", "olmoe", "qwen3_moe", "rwkv",
)  # fmt: skip
"""Whose attention is written out, or which have none."""
PLANS = {
    "data": "mesh (dp=2)",
    "tokens": "mesh (cp=2)\nshard inputs dim 1 over cp",
    "data, tokens, zero 3": (
        "mesh (dp=2, cp=2)\nshard inputs dim 0 over dp\nshard inputs dim 1 over cp\nzero 3 over dp"
    ),
    "zero 2, recompute": "mesh (dp=2)\nzero 2 over dp\nrecompute attention",
    "pipeline": "mesh (pp=2)\npipeline over pp { microbatches 2  schedule 1f1b }",
    "nanobatches": "mesh (tp=2)\nsplit batch into 2",
}
REFUSED = {
    **{(name, "zero 2, recompute"): "E0114" for name in WRITTEN_OUT},
    **{(name, "pipeline"): "E0405" for name in ("mt5", "umt5")},
}
"""No operation of the kind attention; a mask with as many rows as the batch, which the plan must say."""
CASES = [(name, "sdpa") for name in WITH_SDPA] + [(name, "eager") for name in WRITTEN_OUT]

Batch = dict[str, Tensor]


class Loss(nn.Module):
    """A model as a function of tensors that gives its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **given: Tensor) -> Tensor:
        loss: Tensor = self.model(**given).loss
        return loss


def built(name: str, attention: str) -> tuple[nn.Module, bool]:
    """The model, and whether it takes a mask of its encoder's tokens."""
    import transformers

    config_class = transformers.CONFIG_MAPPING[name]
    default = config_class()
    unset = {"head_dim"} if name == "falcon" else set()
    sizes = {key: value for key, value in SIZES.items() if hasattr(default, key) and key not in unset}
    numbers = {key: value for key, value in vars(default).items() if isinstance(value, float)}
    drops = {key: 0.0 for key in numbers if "drop" in key or "layerdrop" in key}
    config = config_class(**sizes, **drops)
    config.use_cache, config._experts_implementation = False, "batched_mm"
    kinds = (
        transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForMaskedLM,
    )  # fmt: skip
    auto = next(kind for kind in kinds if config_class in kind._model_mapping)
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation=attention).double().train()
    return Loss(model), auto is transformers.AutoModelForSeq2SeqLM


def batch(number: int, *, masked: bool) -> Batch:
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(3, 90, (BATCH, TOKENS), generator=generator)
    labels = tokens.clone()
    labels[:, :3] = -100
    labels[1, 8:] = -100
    return {"input_ids": tokens, "labels": labels, **({"attention_mask": torch.ones_like(tokens)} if masked else {})}


def two_steps(model: nn.Module, call: Callable[..., Tensor], *, masked: bool) -> list[dict[str, Tensor]]:
    """The loss and the gradients of two steps, with a tangent other than 1."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for number in range(2):
        optimizer.zero_grad()
        loss = call(**batch(number, masked=masked))
        (loss * 1.7).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach().double().clone(), **{k: _whole(g).clone() for k, g in gradients.items()}})
        optimizer.step()
    return found


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # of what a plan leaves replicated, of old code in a model
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_an_architecture_trains_as_in_eager_mode(name: str, attention: str) -> None:
    pytest.importorskip("transformers")
    model, masked = built(name, attention)
    eager = copy.deepcopy(model)
    expected = two_steps(eager, eager, masked=masked)
    for plan, text in PLANS.items():
        mine = copy.deepcopy(model)
        try:
            found = two_steps(mine, stretto.compile(mine, plan=text), masked=masked)
        except stretto.StrettoError as error:
            assert REFUSED.get((name, plan)) == error.code, f"{plan}: {error}"
            continue
        assert (name, plan) not in REFUSED
        for ours, theirs in zip(found, expected, strict=True):
            largest = max(float(value.abs().max()) for value in theirs.values())
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                scale = float(value.abs().max()) + 1e-3 * largest
                difference = float((ours[key] - value).abs().max()) / scale
                assert difference < TOLERANCE, f"{plan}: {key} differs by {difference:.1e}"
