"""The inputs of a Hugging Face model, from its class and config: tokens or images, and labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TOKENS = "input_ids"
IMAGES = "pixel_values"
LABELS = "labels"


@dataclass(frozen=True)
class ModelInput:
    """The specification of an input."""

    shape: tuple[int, ...]
    high: int | None = None
    """Integers 0 to high - 1 are valid; None for a floating input."""
    may_be_ignored: bool = False
    """Whether the loss ignores the label -100."""

    def sample(self, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
        """Uniform integers, or a normal image of `dtype`."""
        if self.high is None:
            return torch.randn(self.shape, generator=generator, dtype=dtype)
        return torch.randint(0, self.high, self.shape, generator=generator)

    @property
    def range(self) -> dict[str, Any]:
        """The range as a target states it."""
        ignored = {"ignore_index": True} if self.may_be_ignored else {}
        return {} if self.high is None else {"high": self.high, **ignored}


class NoInputs(Exception):
    """The inputs cannot be made; the message is a predicate of the model, such as 'has no vocabulary'."""


def model_inputs(
    transformers: Any, kind: type[nn.Module], config: Any, batch: int, seq: int, *, labelled: bool
) -> dict[str, ModelInput]:
    """The inputs of `kind.forward` by name, with labels if `labelled`. Raises NoInputs if they are unknown."""
    accepted = inspect.signature(kind.forward).parameters
    main = main_input(kind)
    for name in (main, LABELS) if labelled else (main,):
        if name not in accepted:
            raise NoInputs(f'takes no "{name}"')
    inputs = {main: _images(config, batch) if main == IMAGES else _tokens(config, (batch, seq))}
    if labelled:
        inputs[LABELS] = _labels(transformers, kind, config, inputs[main])
    return inputs


def main_input(kind: type[nn.Module]) -> str:
    """The name of the main input: images if the class says so, else tokens."""
    return IMAGES if getattr(kind, "main_input_name", TOKENS) == IMAGES else TOKENS


def _tokens(config: Any, shape: tuple[int, int]) -> ModelInput:
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise NoInputs("has no vocabulary")
    return ModelInput(shape, vocabulary)


def _images(config: Any, batch: int) -> ModelInput:
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not isinstance(channels, int):
        raise NoInputs("has no image size in its config")
    return ModelInput((batch, channels, int(sides[0]), int(sides[1])))


def _labels(transformers: Any, kind: type[nn.Module], config: Any, main: ModelInput) -> ModelInput:
    """One label per example for classifiers, else one per token."""
    auto = transformers.models.auto.modeling_auto
    classifiers = {
        **auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        **auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    if kind.__name__ in _flat(classifiers.values()):
        return ModelInput(main.shape[:1], config.num_labels)
    if kind.__name__ in _flat(auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()):
        return ModelInput(main.shape, config.num_labels, may_be_ignored=True)
    if main.high is None:
        raise NoInputs("requires labels that its config does not describe")
    return ModelInput(main.shape, main.high, may_be_ignored=True)


def _flat(names: Any) -> set[str]:
    return {name for item in names for name in ((item,) if isinstance(item, str) else item)}
