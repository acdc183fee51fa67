"""Compare the model of a Hugging Face target with its config file, as the library reads it, without our loader.

Other checks take the loaded model for the target's: a value of the file that the loader drops would be on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...runtime.checks.report import CONFIG, CheckRow, Verdict

_OF_A_LOAD = {"dtype", "torch_dtype", "transformers_version"}
"""Keys that say how a config was saved or how the model is to be loaded. `stretto` decides the dtype itself."""
_WHOLE = {"": torch.float32, "float32": torch.float32, "float64": torch.float64}
"""The dtype of every floating parameter, where that was asked for: in shorter ones, some models keep single layers."""


def rows_of_config(target_name: str, model: nn.Module, dtype: str) -> list[CheckRow]:
    """A row for each key of the config that the model has with another value; of its class, dtype and tied weights.

    `dtype` is the one that was asked for, or empty.
    """
    scheme, _, text = target_name.partition(":")
    if scheme != "hf":
        return []
    from transformers import AutoConfig

    stated: Any = AutoConfig.from_pretrained(text, local_files_only=True)
    found = (*_values(stated.to_dict(), model.config.to_dict()), *_model(stated, model, dtype))  # type: ignore[union-attr, operator]
    return [CheckRow(CONFIG, name, math.inf, Verdict.DIFFERS, note) for name, note in found]


def _values(stated: Mapping[str, Any], own: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key in sorted({*stated, *own}):
        one, other = stated.get(key), own.get(key)
        if key in _OF_A_LOAD or key.startswith("_"):
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _values(_by_text(one), _by_text(other), f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}", f"the file gives {one!r:.60}, and the model has {other!r:.60}"


def _by_text(values: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Keys may be numbers, such as those of labels."""
    return {str(key): value for key, value in values.items()}


def _model(stated: Any, model: nn.Module, dtype: str) -> Iterator[tuple[str, str]]:
    named = [*(stated.architectures or ())][:1]
    if named and named != [type(model).__name__]:
        yield "architectures", f"the file gives {named[0]}, and the model is a {type(model).__name__}"
    floats = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    others = {str(found) for found in floats if found != _WHOLE.get(dtype, found)}
    if others:
        yield "dtype", f"{dtype or 'float32'} was asked for, and parameters are {', '.join(sorted(others))}"
    is_tied = _is_tied(model)
    if is_tied is not None and (tie := getattr(stated, "tie_word_embeddings", None)) is not None and tie != is_tied:
        yield (
            "tie_word_embeddings",
            f"the file gives {tie}, and the model's weights are {'' if is_tied else 'not '}tied",
        )


def _is_tied(model: Any) -> bool | None:
    """Whether the output layer has the weight of the input embedding; None where either is missing."""
    getters = (getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings"))
    try:
        weights = [getattr(getter() if getter else None, "weight", None) for getter in getters]
    except NotImplementedError:
        return None
    one, other = weights
    return None if one is None or other is None or one.shape != other.shape else one is other
