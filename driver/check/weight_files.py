"""Compare the weights of a Hugging Face target with the files in its folder, without its loader.

Other checks take the model that the loader gives for the target's. If the loader leaves files out, both sides of a
check have the same random weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...runtime.checks.report import WEIGHTS, CheckRow, Verdict

_FILES = "model*.safetensors"
"""What Hugging Face calls the files of a model's weights, one or several."""


def rows_of_files(target_name: str, model: nn.Module) -> list[CheckRow]:
    """A row for each tensor of the files that the model has by the same name and shape, with another value.

    What the library renames or joins when it loads has other names, and is not compared.
    """
    scheme, _, text = target_name.partition(":")
    if scheme != "hf":
        return []
    path = Path(text)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    folder = path if path.is_dir() else path.parent
    return [row for file in sorted(folder.glob(_FILES)) for row in _rows(file, own)]


def _rows(file: Path, own: Mapping[str, Tensor]) -> Iterator[CheckRow]:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors: Any = opened
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                held = own.get(name)
                if held is not None and not _same(tensors.get_tensor(name), held.detach()):
                    note = f"the target's value is not the one in {file.name}"
                    yield CheckRow(WEIGHTS, name, math.inf, Verdict.DIFFERS, note)
    except (SafetensorError, OSError) as error:
        yield CheckRow(WEIGHTS, file.name, math.inf, Verdict.NOT_CHECKED, f"the file cannot be read: {error}")


def _same(stored: Tensor, held: Tensor) -> bool:
    """Whether a stored value is the model's, in the model's dtype; one of another shape is another tensor."""
    return stored.shape != held.shape or torch.equal(stored.to(held.dtype).nan_to_num(), held.nan_to_num())
