"""Captured graphs compute what the model computes, and say where each node comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, InputKind, Mode, OutputKind, origin_of
from torch import nn

from ...subsets import only
from ..models import GPT
from ..running import largest_error, randomize, run_graph, run_reference

transformers = pytest.importorskip("transformers", reason="Hugging Face models need transformers")


def tokens(vocab: int, batch: int = 2, seq: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, vocab, (batch, seq), generator=torch.Generator().manual_seed(seed))


def gpt() -> tuple[nn.Module, dict[str, Any]]:
    return GPT(), {"tokens": tokens(61), "targets": tokens(61, seed=2)}


def llama() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens(61), "labels": tokens(61, seed=2)}


def gpt2() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens(61), "labels": tokens(61, seed=2)}


MODELS = {"gpt": gpt, "llama": llama, "gpt2": gpt2}
TOLERANCE = {"gpt": 1e-12, "llama": 1e-6, "gpt2": 1e-6}
"""Hugging Face models keep float32 islands (the loss, norms, attention) under .double()."""


@pytest.fixture(scope="module", params=only(["gpt", "llama"], MODELS))
def trained(request: pytest.FixtureRequest) -> tuple[str, nn.Module, dict[str, Any], Capture]:
    torch.manual_seed(0)
    model, inputs = MODELS[request.param]()
    model = model.double()
    randomize(model)
    return request.param, model, inputs, capture(model, (), inputs, mode=Mode.TRAIN)


Trained = tuple[str, nn.Module, dict[str, Any], Capture]


def test_the_joint_graph_gives_the_loss_and_gradients_of_eager_backward(trained: Trained) -> None:
    name, model, inputs, captured = trained
    model.zero_grad()
    result = model(**inputs)
    loss = result[0]
    loss.backward()
    actual = run_graph(captured, model, list(inputs.values()))
    assert largest_error(actual[OutputKind.OUTPUT, 0], loss) <= TOLERANCE[name]
    assert largest_error(actual[OutputKind.OUTPUT, 1], result[1]) <= TOLERANCE[name]
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert largest_error(actual[OutputKind.GRADIENT, parameter_name], parameter.grad) <= TOLERANCE[name]


def test_the_reference_run_under_autograd_gives_the_same(trained: Trained) -> None:
    name, model, inputs, captured = trained
    model.zero_grad()
    expected = model(**inputs)[0]
    expected.backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    values = {**dict(model.named_parameters()), **dict(model.named_buffers()), **captured.constants}
    reference = json.loads(json.dumps(captured.reference))
    loss, *_ = run_reference(reference, values, list(inputs.values()))
    loss.backward()
    assert largest_error(loss, expected) <= TOLERANCE[name]
    for key, parameter in model.named_parameters():
        assert largest_error(parameter.grad, gradients[key]) <= TOLERANCE[name]


def test_every_node_says_which_module_and_line_it_comes_from(trained: Trained) -> None:
    _, model, _, captured = trained
    modules = dict(model.named_modules())
    backward = 0
    for node in captured.graph.graph.nodes:
        if node.op != "call_function":
            continue
        origin = origin_of(node)
        assert origin.file.endswith(".py") and origin.line > 0, node
        assert "/torch/" not in origin.file and "/frontend/capture" not in origin.file
        assert origin.module_path in modules, origin.module_path
        backward += origin.backward
    assert backward > 100


def test_both_passes_of_one_module_bear_its_path(trained: Trained) -> None:
    name, _, _, captured = trained
    path = {"gpt": "blocks.1.up", "llama": "model.layers.1.mlp.up_proj", "gpt2": "transformer.h.1.mlp.c_fc"}[name]
    origins = [origin_of(node) for node in captured.graph.graph.nodes]
    assert {origin.backward for origin in origins if origin.module_path == path} == {False, True}
    pairs = {origin.seq_nr for origin in origins if origin.module_path == path and origin.backward}
    assert pairs & {origin.seq_nr for origin in origins if origin.module_path == path and not origin.backward}


def test_inputs_stand_in_the_order_of_their_kinds_and_the_model(trained: Trained) -> None:
    _, model, inputs, captured = trained
    kinds = [item.kind for item in captured.inputs]
    assert kinds == sorted(kinds, key=list(InputKind).index)
    assert [i.name for i in captured.inputs if i.kind is InputKind.PARAMETER] == [
        n for n, _ in model.named_parameters()
    ]
    assert [i.name for i in captured.inputs if i.kind is InputKind.BUFFER] == [n for n, _ in model.named_buffers()]
    assert [i.name for i in captured.inputs if i.kind is InputKind.INPUT] == list(inputs)
    placeholders = captured.graph.graph.find_nodes(op="placeholder")
    for item, node in zip(captured.inputs, placeholders, strict=True):
        assert item.shape == tuple(node.meta["val"].shape) and item.dtype == node.meta["val"].dtype


def test_a_tied_head_is_one_parameter_with_two_names(trained: Trained) -> None:
    name, _, _, captured = trained
    tied = {i.name: i.aliases for i in captured.inputs if len(i.aliases) > 1}
    expected = {
        "gpt": {"tokens.weight": ("tokens.weight", "head.weight")},
        "llama": {},
        "gpt2": {"transformer.wte.weight": ("transformer.wte.weight", "lm_head.weight")},
    }
    assert tied == expected[name]


def test_no_node_is_left_that_only_checks(trained: Trained) -> None:
    *_, captured = trained
    for node in captured.graph.graph.nodes:
        assert "assert" not in str(node.target)
        assert node.op != "call_function" or node.users, f"{node} is dead"


def test_results_are_rebuilt_in_the_models_own_type(trained: Trained) -> None:
    _, model, inputs, captured = trained
    actual = run_graph(captured, model, list(inputs.values()))
    rebuilt = captured.result.output_tree.rebuild([actual[OutputKind.OUTPUT, 0], actual[OutputKind.OUTPUT, 1]])
    assert type(rebuilt) is type(model(**inputs))
    assert rebuilt[0] is actual[OutputKind.OUTPUT, 0]


def test_inference_gives_the_logits_without_a_backward(trained: Trained) -> None:
    name, model, inputs, _ = trained
    only_tokens = {key: value for key, value in inputs.items() if key in ("tokens", "input_ids")}
    captured = capture(model, (), only_tokens, mode=Mode.INFER)
    actual = run_graph(captured, model, list(only_tokens.values()))
    with torch.no_grad():
        result = model(**only_tokens)
    logits = result if isinstance(result, torch.Tensor) else result.logits
    assert len(captured.outputs) == 1 and captured.differentiable == ()
    assert largest_error(actual[OutputKind.OUTPUT, 0], logits) <= TOLERANCE[name]
    assert not any(origin_of(node).backward for node in captured.graph.graph.nodes)


def test_loss_only_keeps_the_loss_and_all_gradients(trained: Trained) -> None:
    name, model, inputs, _ = trained
    captured = capture(model, (), inputs, mode=Mode.TRAIN, loss_only=True)
    outputs = [item for item in captured.outputs if item.kind is OutputKind.OUTPUT]
    assert len(outputs) == 1
    assert sum(item.kind is OutputKind.GRADIENT for item in captured.outputs) == len(list(model.parameters()))
    assert [item["kind"] for item in captured.reference["outputs"]] == ["output"]
    loss = run_graph(captured, model, list(inputs.values()))[OutputKind.OUTPUT, 0]
    assert largest_error(loss, model(**inputs)[0]) <= TOLERANCE[name]
