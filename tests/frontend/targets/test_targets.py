"""Targets: models from files and from Hugging Face configs, and what is wrong with those that give none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from stretto.frontend.capture.capture import capture
from stretto.frontend.capture.model_parameters import parameter_infos
from stretto.frontend.captured import InputKind, Mode
from stretto.frontend.targets import hugging_face
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request, TargetError
from torch._subclasses.fake_tensor import FakeTensor

transformers = pytest.importorskip("transformers", reason="Hugging Face targets need transformers")

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, index):
        return (self.linear(x) * index).sum()

def build():
    return Net(), {"x": torch.randn(4, 3), "index": torch.arange(8).view(4, 2)}
"""


def write(folder: Path, text: str, name: str = "model.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def refused(text: str, request: Request = Request()) -> TargetError:  # noqa: B008
    with pytest.raises(TargetError) as caught:
        load_target(text, request)
    assert caught.value.__cause__ is None
    return caught.value


def test_a_function_in_a_file_gives_a_model_and_inputs(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL)
    target = load_target(f"{path}:build")
    assert target.weights_are_real and set(target.inputs) == {"x", "index"}
    assert target.source == {"kind": "file", "path": path, "name": "build"}
    assert target.input_ranges == {"index": {"high": 8}}
    assert target.model.training


def test_a_file_target_is_the_same_each_time_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL)
    before = torch.get_rng_state()
    first, second = load_target(f"{path}:build"), load_target(f"{path}:build")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.inputs["x"], second.inputs["x"])
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_a_dtype_is_that_of_parameters_and_floating_inputs(tmp_path: Path) -> None:
    target = load_target(f"{write(tmp_path, MODEL)}:build", Request(mode=Mode.INFER, dtype="float64"))
    assert {p.dtype for p in target.model.parameters()} == {torch.float64}
    assert target.inputs["x"].dtype == torch.float64 and target.inputs["index"].dtype == torch.int64
    assert torch.get_default_dtype() == torch.float32
    assert not target.model.training


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, MODEL, "neighbour_of_target.py")
    path = write(tmp_path, "from neighbour_of_target import build\n")
    assert load_target(f"{path}:build").weights_are_real
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("text", ["model.py", "hf:", "model.py:two words", ":build"])
def test_a_target_of_neither_form_is_refused(text: str) -> None:
    error = refused(text)
    assert error.code == "E0201" and "hf:PATH" in error.expected


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refused(f"{tmp_path / 'none.py'}:build").code == "E0202"
    assert refused(f"{write(tmp_path, MODEL, 'model.txt')}:build").code == "E0202"


def test_a_missing_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    error = refused(f"{write(tmp_path, MODEL)}:bild")
    assert error.code == "E0203" and 'did you mean "build"?' in error.help


def test_what_the_function_raises_is_said_at_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "def build():\n    raise ValueError('no such size: 7')\n")
    error = refused(f"{path}:build")
    assert error.code == "E0204" and "ValueError: no such size: 7" in error.message
    assert error.span is not None and (error.span.file, error.span.line) == (path, 2)


@pytest.mark.parametrize(("text", "line"), [("import torch\nimport absent_module\n", 2), ("x = 1\ndef build(:\n", 2)])
def test_a_file_that_cannot_be_imported_is_refused_at_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path, text)
    error = refused(f"{path}:build")
    assert error.code == "E0204"
    assert error.span is not None and (error.span.file, error.span.line) == (path, line)


@pytest.mark.parametrize(
    "body", ["build = 3", "def build(size): return size", "def build(): return 1, 2", "def build(): return None"]
)
def test_a_function_of_another_form_is_refused(tmp_path: Path, body: str) -> None:
    error = refused(f"{write(tmp_path, body)}:build")
    assert error.code == "E0205" and "(model, inputs)" in error.expected


@pytest.mark.parametrize(
    ("request_", "code"),
    [(Request(dtype="float16"), "E0218"), (Request(batch=0), "E0219"), (Request(seq=-1), "E0219")],
)
def test_an_impossible_request_is_refused(request_: Request, code: str) -> None:
    assert refused("model.py:build", request_).code == code


def test_a_model_without_values_cannot_change_its_dtype(tmp_path: Path) -> None:
    text = MODEL + (
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "def fake():\n    torch.set_default_dtype(torch.float32)\n"
        "    with FakeTensorMode():\n        return Net(), {'x': torch.zeros(4, 3), 'index': torch.zeros(4, 2)}\n"
    )
    path = write(tmp_path, text)
    assert not load_target(f"{path}:fake").weights_are_real
    assert refused(f"{path}:fake", Request(dtype="float64")).code == "E0218"


def config(folder: Path, **changes: Any) -> str:
    """Write the small Llama's config with some fields changed; None leaves a field out."""
    fields = {name: value for name, value in {**LLAMA, **changes}.items() if value is not None}
    return write(folder, json.dumps(fields), "config.json")


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_config_gives_a_seeded_model_with_token_inputs(tmp_path: Path, named: str) -> None:
    file = config(tmp_path)
    text = f"hf:{tmp_path if named == 'folder' else file}"
    first, second = (load_target(text, Request(batch=3, seq=5)) for _ in range(2))
    assert {name: tuple(value.shape) for name, value in first.inputs.items()} == {"input_ids": (3, 5), "labels": (3, 5)}
    assert first.input_ranges["input_ids"] == {"high": 61} and first.input_ranges["labels"]["high"] == 61
    assert first.weights_are_real and type(first.model).__name__ == "LlamaForCausalLM"
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_inference_has_no_labels_and_a_model_in_eval_mode(tmp_path: Path) -> None:
    target = load_target(f"hf:{config(tmp_path)}", Request(mode=Mode.INFER, dtype="bfloat16"))
    assert set(target.inputs) == {"input_ids"} and not target.model.training
    assert {p.dtype for p in target.model.parameters()} == {torch.bfloat16}


def test_weights_beside_the_config_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{k: LLAMA[k] for k in LLAMA if k != "model_type"}))
    saved.save_pretrained(tmp_path)
    target = load_target(f"hf:{tmp_path}", Request(dtype="float64"))
    assert target.weights_are_real
    for (name, a), b in zip(target.model.named_parameters(), saved.parameters(), strict=True):
        assert a.dtype == torch.float64 and torch.equal(a, b.double()), name


def test_damaged_or_missing_weights_are_refused(tmp_path: Path) -> None:
    config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    assert refused(f"hf:{tmp_path}").code == "E0206"
    save_file({"lm_head.weight": torch.zeros(61, 32)}, tmp_path / "model.safetensors", {"format": "pt"})
    error = refused(f"hf:{tmp_path}")
    assert error.code == "E0206" and '"model.embed_tokens.weight"' in error.message


def test_a_config_without_architectures_gives_its_causal_language_model(tmp_path: Path) -> None:
    target = load_target(f"hf:{config(tmp_path, architectures=None)}")
    assert type(target.model).__name__ == "LlamaForCausalLM"


def test_a_large_model_has_shapes_but_no_values_and_can_be_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugging_face, "LARGEST_RANDOM_BYTES", 1000)
    target = load_target(f"hf:{config(tmp_path)}", Request(dtype="bfloat16", seq=8))
    assert not target.weights_are_real
    assert all(isinstance(parameter, FakeTensor) for parameter in target.model.parameters())
    assert not any(isinstance(buffer, FakeTensor) for buffer in target.model.buffers())
    captured = capture(target.model, (), target.inputs, mode=Mode.TRAIN, loss_only=True)
    parameters = [item for item in captured.inputs if item.kind is InputKind.PARAMETER]
    assert len(parameters) == len(list(target.model.parameters()))
    assert {item.dtype for item in parameters} == {torch.bfloat16}


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refused(f"hf:{tmp_path}").code == "E0206"
    error = refused(f"hf:{write(tmp_path, '{broken', 'config.json')}")
    assert error.code == "E0206" and error.span is not None and error.span.line == 1
    assert refused(f"hf:{write(tmp_path, '[1]', 'config.json')}").code == "E0206"
    assert refused(f"hf:{config(tmp_path, num_attention_heads='four')}").code == "E0206"


def test_an_unknown_model_is_refused_with_the_nearest(tmp_path: Path) -> None:
    error = refused(f"hf:{config(tmp_path, model_type='lama')}")
    assert error.code == "E0208" and "llama" in error.help
    error = refused(f"hf:{config(tmp_path, architectures=['LamaForCausalLM'])}")
    assert error.code == "E0208" and "LlamaForCausalLM" in error.help


def test_inputs_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    error = refused(f"hf:{config(tmp_path)}", Request(seq=65))
    assert error.code == "E0209" and "64" in error.message
    assert refused(f"hf:{config(tmp_path, architectures=['LlamaModel'])}").code == "E0209"


def test_missing_transformers_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = refused(f"hf:{config(tmp_path)}")
    assert error.code == "E0207" and "pip install" in error.help


def test_parameters_are_listed_once_with_all_names_and_their_owners_kind() -> None:
    small = {"vocab_size": 61, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small))
    infos = {info.name: info for info in parameter_infos(model)}
    assert list(infos) == [name for name, _ in model.named_parameters()]
    assert infos["transformer.wte.weight"].aliases == ("transformer.wte.weight", "lm_head.weight")
    assert infos["transformer.wte.weight"].owner_kind == "embedding"
    assert infos["transformer.h.0.attn.c_attn.weight"].owner_kind == "linear_transposed"
    assert infos["transformer.h.0.attn.c_attn.weight"].shape == (8, 24)
    assert infos["transformer.ln_f.weight"].owner_kind == "other"


def test_the_dropout_of_a_stock_config_stays_as_it_is(tmp_path: Path) -> None:
    data = {"model_type": "gpt2", "vocab_size": 33, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    (tmp_path / "config.json").write_text(json.dumps(data))
    training = load_target(f"hf:{tmp_path}", Request(seq=4))
    assert {m.p for m in training.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert training.model.training and not load_target(f"hf:{tmp_path}", Request(mode=Mode.INFER, seq=4)).model.training
