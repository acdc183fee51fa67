"""A decode step of Hugging Face's Llama with its static cache: the cache's tensors are states, the position a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.model.compiled_module import compiled_module, program_of
from stretto.runtime.prover import prove
from stretto.runtime.threads.session import RankThreads
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

transformers = pytest.importorskip("transformers", reason="the models are Hugging Face's")

BATCH, LENGTH, VOCABULARY, KV_HEADS, HEAD = 2, 64, 31, 2, 4
TP = """mesh (tp=2)
shard "*.{q,k,v,gate,up}_proj" columns over tp
shard "*.{o,down}_proj" rows over tp
shard buffers "keys_*", "values_*" dim 1 over tp
"""
STATES = ["keys_*", "values_*", "length_*"]


class Float64(TorchFunctionMode):
    """Inside, what a model computes in float32 whatever its dtype, such as rotations, is float64."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raised = [torch.float64 if arg is torch.float32 else arg for arg in args]
        named = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return (Tensor.double if function is Tensor.float else function)(*raised, **named)


class Decoder(nn.Module):
    """A Llama with a cache, whose tensors are registered beside it."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=KV_HEADS,
        )  # fmt: skip
        self.model = transformers.LlamaForCausalLM(config)
        self.cache = transformers.StaticCache(config=config, max_cache_len=LENGTH)
        self.cache.early_initialization(BATCH, KV_HEADS, HEAD, torch.float64, "cpu")
        for index, layer in enumerate(self.cache.layers):
            self.register_buffer(f"keys_{index}", layer.keys)
            self.register_buffer(f"values_{index}", layer.values)
            self.register_buffer(f"length_{index}", layer.cumulative_length)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """(batch, tokens), and the position of the first one."""
        for layer in self.cache.layers:
            layer.cumulative_length.copy_(position)
        with Float64():
            return self.model(tokens, cache=self.cache, use_cache=True).logits


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().double().eval()


def test_64_tokens_one_at_a_time_are_the_full_forward_without_a_copy_of_the_cache() -> None:
    model = decoder()
    memory = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    with torch.no_grad(), Float64():
        expected = model.model(tokens, use_cache=False).logits
    compiled = stretto.compile(model, plan=TP, states=STATES)
    with torch.no_grad():
        first = compiled(tokens[:, :1], torch.tensor(0))
        last = compiled_module(compiled).last
        assert last is not None and isinstance(last.session, RankThreads)
        copied = last.session.copied_state_bytes
        others = [compiled(tokens[:, i : i + 1], torch.tensor(i)) for i in range(1, LENGTH)]
    torch.testing.assert_close(torch.cat([first, *others], 1), expected, rtol=0, atol=1e-9)
    assert last.session.copied_state_bytes == copied <= 2 * 8, "a copy of each length for the second rank"
    assert len(compiled_module(compiled)._programs._keys) == 1, "compiled once"
    assert {name: buffer.data_ptr() for name, buffer in compiled.named_buffers()} == memory

    program = program_of(compiled)
    shards = {each.name: [shard.dim for shard in each.shards] for each in program.of_kind("state")}
    assert shards == {f"{n}_{i}": [1] * (n != "length") for i in range(2) for n in ("keys", "values", "length")}
    code = [i for function in program.functions.values() for i in function.code]
    assert [each.op for each in code if each.into is not None].count("aten.index_copy.default") == 2, "in the layers"
    assert not any("gather" in each.op for each in code)
    assert prove(program).safe
