"""The model of a Hugging Face target is compared with its config file, without the loader."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto.driver.readings.hugging_face_config import rows_of_config
from stretto.frontend.captured import Mode
from stretto.frontend.targets import hugging_face
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request
from torch import nn

GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1,
    "n_positions": 16, "vocab_size": 20, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.25,
    "scale_attn_weights": False, "bos_token_id": 0, "torch_dtype": "bfloat16", "n_inner": None,
    "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}, "mine": {"flag": False},
}  # fmt: skip


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    return f"hf:{tmp_path}"


def loaded(target: str, dtype: str | None = None) -> nn.Module:
    return load_target(target, Request(Mode.TRAIN, dtype=dtype)).model


def names(target: str, model: nn.Module, dtype: str = "") -> list[str]:
    return [row.name for row in rows_of_config(target, model, dtype)]


@pytest.mark.parametrize("dtype", ["", "float64", "bfloat16"])
def test_a_model_that_is_what_its_file_says_has_no_row(target: str, dtype: str) -> None:
    assert names(target, loaded(target, dtype or None), dtype) == []
    assert names(f"{target}/config.json", loaded(f"{target}/config.json", dtype or None), dtype) == []


def without_falsy(transformers: Any, file: str, data: dict[str, Any]) -> Any:
    kept = {key: value for key, value in data.items() if value}
    return transformers.models.auto.configuration_auto.CONFIG_MAPPING[data["model_type"]].from_dict(kept)


def test_values_that_the_loader_drops_have_rows(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "_config", without_falsy)
    rows = rows_of_config(target, loaded(target), "")
    assert {row.name for row in rows} >= {"resid_pdrop", "attn_pdrop", "scale_attn_weights", "bos_token_id"}
    assert "embd_pdrop" not in {row.name for row in rows}
    assert "the file gives 0.0, and the model has 0.1" in {row.note for row in rows}


def test_another_class_dtype_or_tie_has_a_row(target: str) -> None:
    model: Any = loaded(target)
    assert names(target, model.transformer) == ["architectures"]
    assert names(target, copy.deepcopy(model).double()) == ["dtype"]
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
    assert names(target, model) == ["tie_word_embeddings"]


def test_other_targets_have_no_config() -> None:
    assert rows_of_config("model.py:make", nn.Linear(2, 2), "") == []
