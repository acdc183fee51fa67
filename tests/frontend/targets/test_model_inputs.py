"""Inputs of Hugging Face models are made from what their class reads and their config states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from stretto.diagnostics import StrettoError
from stretto.frontend.captured import Mode
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request

CONFIGS = Path(__file__).parents[3] / "examples" / "configs"


def _inputs(
    tmp_path: Path, config: str, architecture: str, mode: Mode = Mode.TRAIN, **changes: object
) -> dict[str, object]:
    """(shape, dtype, range) of each input of a class with a tiny config."""
    data = json.loads((CONFIGS / config).read_text(encoding="utf-8")) | {"architectures": [architecture], **changes}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    target = load_target(f"hf:{file}", Request(mode=mode, batch=2, seq=6))
    return {
        name: (tuple(value.shape), value.dtype, target.input_ranges.get(name)) for name, value in target.inputs.items()
    }


def test_a_masked_language_model_reads_tokens_and_has_a_label_for_each(tmp_path: Path) -> None:
    assert _inputs(tmp_path, "bert_tiny.json", "BertForMaskedLM") == {
        "input_ids": ((2, 6), torch.int64, {"high": 257}),
        "labels": ((2, 6), torch.int64, {"high": 257, "ignore_index": True}),
    }


def test_a_classifier_of_texts_has_a_label_an_example(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path, "bert_tiny.json", "BertForSequenceClassification", num_labels=3)
    assert inputs["labels"] == ((2,), torch.int64, {"high": 3})


def test_a_classifier_of_tokens_has_a_label_a_token(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path, "bert_tiny.json", "BertForTokenClassification", num_labels=3)
    assert inputs["labels"] == ((2, 6), torch.int64, {"high": 3, "ignore_index": True})


@pytest.mark.parametrize("mode", Mode)
def test_a_classifier_of_images_reads_images(tmp_path: Path, mode: Mode) -> None:
    inputs = _inputs(tmp_path, "vit_tiny.json", "ViTForImageClassification", mode)
    assert inputs.pop("pixel_values") == ((2, 3, 16, 16), torch.float32, None)
    assert inputs == ({"labels": ((2,), torch.int64, {"high": 10})} if mode is Mode.TRAIN else {})


def test_a_model_that_takes_no_labels_cannot_be_trained_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(StrettoError, match=r'E0209.*"ViTModel" takes no "labels"'):
        _inputs(tmp_path, "vit_tiny.json", "ViTModel")


def test_in_float64_all_parameters_are_float64(tmp_path: Path) -> None:
    """DeepSeek-V3 makes the weight of its router in float32, whatever the default dtype."""
    small = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 101, "max_position_embeddings": 32, "q_lora_rank": 8,
        "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1,
    }  # fmt: skip
    file = tmp_path / "config.json"
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], **small}
    file.write_text(json.dumps(config), encoding="utf-8")
    target = load_target(f"hf:{file}", Request(dtype="float64", batch=2, seq=6))
    assert {parameter.dtype for parameter in target.model.parameters()} == {torch.float64}


_TEXT = {"vocab_size": 64, "d_model": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_LAYERS = {
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 2,
}  # fmt: skip
_SOUND = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8, 8],
    "conv_kernel": [6, 3], "conv_stride": [4, 2], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "vocab_size": 32, "classifier_proj_size": 8, "apply_spec_augment": False,
}  # fmt: skip
_PART = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CLASSES: dict[str, dict[str, object]] = {
    "BartForConditionalGeneration": {"model_type": "bart", "max_position_embeddings": 32, **_TEXT, **_LAYERS},
    "WhisperForConditionalGeneration": {
        "model_type": "whisper", "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 12, **_TEXT,
        **_LAYERS,
    },
    "Wav2Vec2ForCTC": {"model_type": "wav2vec2", **_SOUND},
    "Wav2Vec2ForSequenceClassification": {"model_type": "wav2vec2", **_SOUND},
    "ASTForAudioClassification": {
        "model_type": "audio-spectrogram-transformer", "patch_size": 4, "frequency_stride": 4, "time_stride": 4,
        "max_length": 16, "num_mel_bins": 8, **_PART,
    },
    "CLIPModel": {
        "model_type": "clip", "projection_dim": 8,
        "text_config": {"vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 2, **_PART},
        "vision_config": {"image_size": 8, "patch_size": 4, **_PART},
    },
}  # fmt: skip
TRAINED = {
    "BartForConditionalGeneration": {"input_ids": (2, 6), "labels": (2, 6)},
    "WhisperForConditionalGeneration": {"input_features": (2, 8, 32), "labels": (2, 6)},
    "Wav2Vec2ForCTC": {"input_values": (2, 54), "labels": (2, 3)},
    "Wav2Vec2ForSequenceClassification": {"input_values": (2, 54), "labels": (2,)},
    "ASTForAudioClassification": {"input_values": (2, 16, 8), "labels": (2,)},
    "CLIPModel": {"input_ids": (2, 6), "pixel_values": (2, 3, 8, 8)},
}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("architecture", CLASSES)
def test_a_class_gets_the_inputs_that_it_takes_and_runs_on_them_in_float64(
    tmp_path: Path, architecture: str, mode: Mode
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"architectures": [architecture], **CLASSES[architecture]}), encoding="utf-8")
    target = load_target(f"hf:{file}", Request(mode=mode, batch=2, seq=6, dtype="float64"))
    expected = dict(TRAINED[architecture])
    if mode is Mode.INFER and expected.pop("labels", None) and architecture.endswith("ConditionalGeneration"):
        expected["decoder_input_ids"] = (2, 6)
    tensors = {name: value for name, value in target.inputs.items() if isinstance(value, torch.Tensor)}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    floats = [*target.model.parameters(), *target.model.buffers(), *tensors.values()]
    assert {tensor.dtype for tensor in floats if tensor.is_floating_point()} == {torch.float64}
    results = target.model(**target.inputs)
    if mode is Mode.TRAIN:
        assert results.loss.dim() == 0 and results.loss.requires_grad
    else:
        assert results[0].dtype is torch.float64
