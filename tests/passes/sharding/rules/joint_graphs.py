"""Every distinct call of the joint forward and backward graphs of three small models, with real float64 operands.

Captured apart from `frontend/`, so that the rules are tested on what torch itself gives.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from stretto.passes.sharding.rules import TensorMeta
from torch import Tensor, nn
from torch._functorch._aot_autograd.descriptors import BufferAOTInput, ParamAOTInput, PlainAOTInput
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch.nn import functional as F

BATCH, TOKENS, VOCAB = 4, 6, 29


@dataclass(frozen=True)
class Recorded:
    """A call with values for its tensors, and what it gave."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor | None, ...]

    def __str__(self) -> str:
        return f"{self.op}{to_metas(self.args)}{to_metas(self.kwargs) or ''}"


def to_metas(value: Any) -> Any:
    """The same structure with a TensorMeta for each tensor."""
    if isinstance(value, Tensor):
        return TensorMeta(tuple(value.shape), value.dtype)
    if isinstance(value, (list, tuple)):
        return type(value)(to_metas(item) for item in value)
    if isinstance(value, dict):
        return {name: to_metas(item) for name, item in value.items()}
    return value


class Block(nn.Module):
    """A GPT block with fused query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, s, w = x.shape
        q, k, v = (y.view(b, s, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(w, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, w))
        hidden: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + hidden


class GPT(nn.Module):
    """A plain GPT with tied embeddings that returns its loss."""

    def __init__(self, width: int = 24, heads: int = 6) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, width), nn.Embedding(TOKENS, width)
        self.block, self.norm = Block(width, heads), nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        logits = F.linear(self.norm(self.block(x)), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class LossOnly(nn.Module):
    """A Hugging Face model that returns its loss alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=input_ids, labels=labels, use_cache=False).loss
        return loss


def gpt() -> nn.Module:
    """The plain GPT."""
    return GPT()


def llama() -> nn.Module:
    """One layer, two query heads to a key head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=3,
    )
    return LossOnly(LlamaForCausalLM(config))


def gpt2() -> nn.Module:
    """One layer, no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=1, n_head=6, n_positions=8, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
    )
    return LossOnly(GPT2LMHeadModel(config))


MODELS: dict[str, Callable[[], nn.Module]] = {"gpt": gpt, "llama": llama, "gpt2": gpt2}


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps each distinct call."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.calls: dict[str, Recorded] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and "view" in str(target):
            args = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
        result = super().call_function(target, args, kwargs)
        if isinstance(target, torch._ops.OpOverload):
            outputs = result if isinstance(result, (list, tuple)) else (() if result is None else (result,))
            call = Recorded(str(target), tuple(args), dict(kwargs), tuple(outputs))
            self.calls.setdefault(str(call), call)
        return result


def _in_float64(graph: torch.fx.GraphModule) -> None:
    """Raise every cast and constant to float64, as `model.double()` does not."""

    def raised(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    for node in graph.graph.nodes:
        if node.op == "call_function":
            if "_assert_tensor_metadata" in str(node.target):
                node.kwargs = {}
                node.args = node.args[:1]
            node.args = tuple(raised(arg) for arg in node.args)
            node.kwargs = {name: raised(value) for name, value in node.kwargs.items()}
    graph.recompile()


def calls(name: str) -> list[Recorded]:
    """The distinct calls of one model's training graph."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    ids = torch.randint(0, VOCAB, (BATCH, TOKENS))
    kwargs = {"input_ids": ids, "labels": torch.randint(0, VOCAB, (BATCH, TOKENS))}
    exported = torch.export.export(model, (), kwargs, strict=False)
    with ExitStack() as stack:
        module = exported.module(check_guards=False)
        joint = aot_export_joint_with_descriptors(stack, module, (), kwargs)
    graph = joint.graph_module
    _in_float64(graph)
    recorder = _Recorder(graph)
    descs = [node.meta["desc"] for node in graph.graph.find_nodes(op="placeholder")]
    recorder.run(*(_value(desc, module, list(kwargs.values())) for desc in descs))
    return list(recorder.calls.values())


def _value(desc: Any, module: nn.Module, inputs: list[Tensor]) -> Tensor:
    """What a placeholder stands for."""
    if isinstance(desc, ParamAOTInput):
        return module.get_parameter(desc.target).detach()
    if isinstance(desc, BufferAOTInput):
        return module.get_buffer(desc.target)
    return inputs[desc.idx] if isinstance(desc, PlainAOTInput) else torch.ones((), dtype=torch.float64)
