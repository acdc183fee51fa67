"""The weights of a Hugging Face target are compared with the files in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stretto.driver.check.weight_files import rows_of_files
from stretto.runtime.checks.report import Verdict
from torch import nn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's weights in two files, and a file of something else."""
    torch.manual_seed(0)
    for name, tensor in model().state_dict().items():
        save_file({name: tensor.clone()}, tmp_path / f"model-{name}.safetensors")
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    return tmp_path


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


def test_a_model_that_has_the_weights_of_its_files_has_no_row(folder: Path) -> None:
    assert rows_of_files(f"hf:{folder}", model()) == []
    assert rows_of_files(f"hf:{folder / 'config.json'}", model()) == []


def test_a_model_whose_loader_left_a_file_out_differs(folder: Path) -> None:
    other = model()
    with torch.no_grad():
        other.weight.add_(1)  # type: ignore[operator]  # a parameter
    [row] = rows_of_files(f"hf:{folder}", other)
    assert (row.name, row.verdict) == ("weight", Verdict.DIFFERS) and "model-weight.safetensors" in row.note


def test_stored_values_are_compared_in_the_dtype_of_the_model(folder: Path) -> None:
    assert rows_of_files(f"hf:{folder}", model().bfloat16()) == []


def test_names_that_the_model_lacks_and_other_targets_are_not_compared(folder: Path) -> None:
    assert rows_of_files(f"hf:{folder}", nn.Sequential(model(1))) == []
    assert rows_of_files("model.py:make", model(1)) == []


def test_a_damaged_file_is_not_compared(folder: Path) -> None:
    (folder / "model-x.safetensors").write_bytes(b"x")
    [row] = rows_of_files(f"hf:{folder}", model())
    assert row.verdict is Verdict.NOT_CHECKED
