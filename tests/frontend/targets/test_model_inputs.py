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
