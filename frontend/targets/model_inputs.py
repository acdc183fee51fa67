"""The inputs of a Hugging Face model, from its class and config: tokens, images or sound, and labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

TOKENS = "input_ids"
IMAGES = "pixel_values"
FEATURES = "input_features"
"""Spectrograms."""
WAVES = "input_values"
"""Samples of sound, or spectrograms."""
LABELS = "labels"
DECODED = "decoder_input_ids"
"""The tokens of a decoder beside an encoder; with labels the model makes them."""
PAIR_LOSS = "return_loss"
"""The argument of classes that compare texts with images."""
_STRIDE = 2
"""Spectrogram frames for each position of an encoder that states its positions."""


@dataclass(frozen=True)
class ModelInput:
    """The specification of an input."""

    shape: tuple[int, ...]
    high: int | None = None
    """Integers 0 to high - 1 are valid; None for a floating input."""
    may_be_ignored: bool = False
    """Whether the loss ignores the label -100."""

    def sample(self, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
        """Uniform integers, or normal numbers of `dtype`."""
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
    main, compares = main_input(kind), compares_pairs(kind)
    for name in (main, LABELS) if labelled and not compares else (main,):
        if name not in accepted:
            raise NoInputs(f'takes no "{name}"')
    inputs = {main: _main(main, config, batch, seq)}
    if compares:
        return inputs | {IMAGES: _images(config.vision_config, batch)}
    if labelled:
        inputs[LABELS] = _labels(transformers, kind, config, inputs[main], seq)
    elif DECODED in accepted and getattr(config, "is_encoder_decoder", False):
        inputs[DECODED] = _tokens(config, (batch, seq))
    return inputs


def main_input(kind: type[nn.Module]) -> str:
    """The name of the main input, as the class says it: images or sound, else tokens."""
    name = getattr(kind, "main_input_name", TOKENS)
    return name if name in (IMAGES, FEATURES, WAVES) else TOKENS


def compares_pairs(kind: type[nn.Module]) -> bool:
    """Whether the class takes texts and images together, and has a loss of its own without labels."""
    return {TOKENS, IMAGES, PAIR_LOSS} <= set(inspect.signature(kind.forward).parameters)


def _main(name: str, config: Any, batch: int, seq: int) -> ModelInput:
    if name == IMAGES:
        return _images(config, batch)
    return _tokens(config, (batch, seq)) if name == TOKENS else _sound(config, batch, seq)


def _tokens(config: Any, shape: tuple[int, int]) -> ModelInput:
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise NoInputs("has no vocabulary")
    return ModelInput(shape, vocabulary)


def _sound(config: Any, batch: int, seq: int) -> ModelInput:
    """Samples for `seq` positions behind the convolutions, or a spectrogram of the config's size or of `seq` frames."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if isinstance(kernels, Sequence) and isinstance(strides, Sequence):
        samples = seq
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return ModelInput((batch, samples))
    bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    frames, channel = getattr(config, "max_length", None), getattr(config, "input_feat_per_channel", None)
    if isinstance(channel, int):
        return ModelInput((batch, seq, channel))
    if isinstance(bins, int) and isinstance(positions, int):
        return ModelInput((batch, bins, _STRIDE * positions))
    if isinstance(bins, int) and isinstance(frames, int):
        return ModelInput((batch, frames, bins))
    raise NoInputs("has no size of its sound in its config")


def _images(config: Any, batch: int) -> ModelInput:
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not isinstance(channels, int):
        raise NoInputs("has no image size in its config")
    return ModelInput((batch, channels, int(sides[0]), int(sides[1])))


def _labels(transformers: Any, kind: type[nn.Module], config: Any, main: ModelInput, seq: int) -> ModelInput:
    """One label per example for classifiers, else one per token; transcripts are half as long as the sound."""
    auto = transformers.models.auto.modeling_auto
    classifiers = {
        **auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        **auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        **auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    }
    batch = main.shape[0]
    if kind.__name__ in _flat(classifiers.values()):
        return ModelInput((batch,), config.num_labels)
    if kind.__name__ in _flat(auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()):
        return ModelInput(main.shape, config.num_labels, may_be_ignored=True)
    if kind.__name__ in _flat(auto.MODEL_FOR_CTC_MAPPING_NAMES.values()):
        return _tokens(config, (batch, max(1, seq // 2)))
    if main.high is None and not getattr(config, "is_encoder_decoder", False):
        raise NoInputs("requires labels that its config does not describe")
    return replace(_tokens(config, (batch, seq)), may_be_ignored=True)


def _flat(names: Any) -> set[str]:
    return {name for item in names for name in ((item,) if isinstance(item, str) else item)}
