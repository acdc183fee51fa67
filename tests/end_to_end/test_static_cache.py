"""A decode step of Hugging Face's Llama with its static cache: the cache's tensors are states, the position a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.model.compiled_module import compiled_module, program_of
from stretto.frontend.captured import CaptureError
from stretto.runtime.prover import prove
from stretto.runtime.threads.session import RankThreads
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..subsets import some

transformers = pytest.importorskip("transformers", reason="the models are Hugging Face's")

BATCH, LENGTH, VOCABULARY, KV_HEADS, HEAD = 2, 64, 31, 2, 4
TP = """mesh (tp=2)
shard "*.{q,k,v,gate,up}_proj" columns over tp
shard "*.{o,down}_proj" rows over tp
shard buffers "*.keys", "*.values" dim 1 over tp
"""

DP_TP = f"""{TP.replace("(tp=2)", "(dp=2, tp=2)")}
shard buffers "*.keys", "*.values" dim 0 over dp
"""


class Float64(TorchFunctionMode):
    """Inside, what a model computes in float32 whatever its dtype, such as rotations, is float64."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raised = [torch.float64 if arg is torch.float32 else arg for arg in args]
        named = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return (Tensor.double if function is Tensor.float else function)(*raised, **named)


def llama(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=KV_HEADS,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).double().eval()


def cache_of(model: nn.Module) -> Any:
    """An empty cache that has its tensors."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=LENGTH)
    cache.early_initialization(BATCH, KV_HEADS, HEAD, torch.float64, "cpu")
    return cache


class Decoder(nn.Module):
    """A Llama that is given a cache, or has one whose tensors are registered beside it."""

    def __init__(self, model: nn.Module, *, own: bool = False) -> None:
        super().__init__()
        self.model = model
        self.cache = cache_of(model) if own else None
        for index, layer in enumerate(self.cache.layers if own else []):
            named = nn.Module()
            for name in ("keys", "values", "cumulative_length"):
                named.register_buffer(name, getattr(layer, name))
            self.add_module(f"cache_{index}", named)

    def forward(self, tokens: Tensor, position: Tensor, cache: Any = None) -> Any:
        """(batch, tokens), the position of the first one, and what has the keys and values of those before it."""
        cache = cache or self.cache
        for layer in cache.layers:
            layer.cumulative_length.copy_(position)
        with Float64():
            result = self.model(tokens, cache=cache, use_cache=True)
        return result.logits, result.cache if self.cache is None else None


def full_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad(), Float64():
        return model(tokens, use_cache=False).logits


def random_tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (BATCH, LENGTH))


@pytest.mark.parametrize("own", some(False, True), ids=["the call's cache", "the model's cache"])
def test_64_tokens_one_at_a_time_are_the_full_forward_without_a_copy_of_the_cache(own: bool) -> None:
    model, tokens = Decoder(llama(), own=own), random_tokens()
    expected = full_logits(model.model, tokens)
    cache = None if own else cache_of(model.model)
    layers = (cache or model.cache).layers
    memory = [tensor.data_ptr() for layer in layers for tensor in (layer.keys, layer.values)]
    compiled = stretto.compile(model, plan=TP, states=["cache*"])
    with torch.no_grad():
        steps = [compiled(tokens[:, :1], torch.tensor(0), cache)]
        last = compiled_module(compiled).last
        assert last is not None and isinstance(last.session, RankThreads)
        copied = last.session.copied_state_bytes
        steps += [compiled(tokens[:, i : i + 1], torch.tensor(i), cache) for i in range(1, LENGTH)]
    assert all(returned is cache for _, returned in steps), "the object that the call was given"
    torch.testing.assert_close(torch.cat([logits for logits, _ in steps], 1), expected, rtol=0, atol=1e-9)
    assert last.session.copied_state_bytes == copied <= 2 * 8, "a copy of each length for the second rank"
    assert len(compiled_module(compiled)._programs._keys) == 1, "compiled once"
    assert [tensor.data_ptr() for layer in layers for tensor in (layer.keys, layer.values)] == memory

    program = program_of(compiled)
    states = program.of_kind("state")
    assert len(states) == 6 and all(
        [shard.dim for shard in state.shards] == ([] if "length" in state.name else [1]) for state in states
    )
    code = [i for function in program.functions.values() for i in function.code]
    assert [each.op for each in code if each.into is not None].count("aten.index_copy.default") == 2, "in the layers"
    assert not any("gather" in each.op for each in code)
    assert prove(program).safe


@pytest.mark.slow
def test_a_prompt_and_its_tokens_have_programs_of_their_own_and_share_each_of_two_caches() -> None:
    model = Decoder(llama(layers=6))
    expected = full_logits(model.model, tokens := random_tokens())
    compiled = stretto.compile(model, plan=DP_TP, states=["cache*"])
    caches = cache_of(model.model), cache_of(model.model)
    with torch.no_grad():
        steps = [[compiled(tokens[:, :8], torch.tensor(0), cache)[0]] for cache in caches]
        for i in range(8, LENGTH):
            for cache, found in zip(caches, steps, strict=True):
                found.append(compiled(tokens[:, i : i + 1], torch.tensor(i), cache)[0])
    for found in steps:
        torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=1e-9)
    assert len(compiled_module(compiled)._programs._keys) == 2
    last = compiled_module(compiled).last
    assert last is not None and isinstance(last.session, RankThreads)
    assert last.session.copied_state_bytes <= 2 * LENGTH * 3 * 6 * 8, "the lengths of the other cache for three ranks"
    assert sum(len(function.code) for function in program_of(compiled).functions.values()) < 200, "layers are folded"


@pytest.mark.slow
def test_prompts_of_all_lengths_share_a_program_by_a_dynamic_size() -> None:
    model = Decoder(llama())
    expected = full_logits(model.model, tokens := random_tokens())
    compiled = stretto.compile(model, plan=TP, states=["cache*"], dynamic={"tokens": {1: ("seq", 2, LENGTH)}})
    with torch.no_grad():
        for length in (5, 9):
            cache = cache_of(model.model)
            prompt, _ = compiled(tokens[:, :length], torch.tensor(0), cache)
            token, _ = compiled(tokens[:, length : length + 1], torch.tensor(length), cache)
            found = torch.cat([prompt, token], 1)
            torch.testing.assert_close(found, expected[:, : length + 1], rtol=0, atol=1e-9)
    assert sum(map(len, compiled_module(compiled)._with_sizes.values())) == 1, "one program, bound to each length"


@pytest.mark.slow
def test_generate_gives_eager_modes_tokens_with_a_program_for_the_prompt_and_one_for_all_tokens() -> None:
    model = llama()
    prompt, options = random_tokens()[:, :5], {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    compiled = stretto.compile(model, plan=TP, states=["cache.*"])
    found = compiled.generate(prompt, attention_mask=torch.ones_like(prompt), cache=cache_of(model), **options)
    assert torch.equal(found, expected)
    assert len(compiled_module(compiled)._programs._keys) == 2


@pytest.mark.slow
def test_a_cache_without_tensors_is_refused_by_what_the_forward_sets() -> None:
    model = llama(layers=1)
    cache = transformers.StaticCache(config=model.config, max_cache_len=LENGTH)
    compiled = stretto.compile(model, plan=TP, states=["cache*"])
    with pytest.raises(CaptureError, match=r'sets "cache\.layers\.0\.\w+"') as caught, torch.no_grad():
        compiled(torch.zeros(BATCH, 1, dtype=torch.int64), cache=cache, use_cache=True)
    assert caught.value.code == "E0216" and "early_initialization" in caught.value.help
    assert cache.layers[0].keys is None and not cache.layers[0].is_initialized, "as it was"


@pytest.mark.slow
def test_a_cache_that_counts_in_a_python_integer_is_refused_by_the_integers_path() -> None:
    config = transformers.MistralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=KV_HEADS, sliding_window=8,
    )  # fmt: skip
    model = transformers.MistralForCausalLM(config).double().eval()
    cache = cache_of(model)
    compiled = stretto.compile(model, plan=TP, states=["cache*"])
    with pytest.raises(CaptureError, match=r'"cache\.layers\.0\.cumulative_length_int"') as caught, torch.no_grad():
        compiled(torch.zeros(BATCH, 1, dtype=torch.int64), cache=cache, use_cache=True)
    assert caught.value.code == "E0216" and cache.layers[0].cumulative_length_int == 0
