"""Load a model from a Hugging Face config on disk, with weights from safetensors beside it, or random ones."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ...diagnostics import Span
from ...diagnostics.bounded_files import read_file
from ...dsl.spelling import did_you_mean
from ..captured import Mode
from .fake_parameters import fake_parameters
from .model_inputs import IMAGES, PAIR_LOSS, ModelInput, NoInputs, compares_pairs, main_input, model_inputs
from .target import DTYPES, Request, Target, TargetError, default_dtype

LARGEST_RANDOM_BYTES = 2_000_000_000
"""Above this size, a model without weights gets fake parameters, not random ones."""

DEFAULT_SEQUENCE = 128
"""Tokens per example by default."""

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load_hugging_face(path: str, request: Request) -> Target:
    """Load the model of a config (a folder or a JSON file), with random inputs of its class: tokens, images, sound.

    Errors: E0206 to E0209.
    """
    transformers = _transformers()
    file = os.path.join(path, "config.json") if os.path.isdir(path) else path
    config = _config(transformers, file, _read(path, file))
    model_class = _model_class(transformers, config, file)
    seq = _sequence(config, request, file) if main_input(model_class) != IMAGES else 0
    inputs = _inputs(transformers, model_class, config, request, seq, file)
    model, real = _build(model_class, config, os.path.dirname(file), request)
    model.train(request.mode is Mode.TRAIN)
    shape = {"batch": request.batch, **({"seq": seq} if seq else {})}
    source = {"kind": "hf", "path": path, "architecture": model_class.__name__, **shape}
    dtype = DTYPES[request.dtype] if request.dtype else torch.float32
    generator = torch.Generator().manual_seed(request.seed)
    samples: dict[str, Any] = {name: each.sample(dtype, generator) for name, each in inputs.items()}
    if compares_pairs(model_class) and request.mode is Mode.TRAIN:
        samples[PAIR_LOSS] = True
    ranges = {name: model_input.range for name, model_input in inputs.items() if model_input.range}
    return Target(model, samples, real, source, ranges)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise TargetError(
            "E0207",
            f'an "hf:" target needs the package "transformers": {error}',
            help='pip install "stretto[compiler,transformers]"',
        ) from None
    return transformers


def _read(path: str, file: str) -> dict[str, Any]:
    try:
        data = json.loads(read_file(file).decode("utf-8"))
    except OSError as error:
        help = "give a folder with a config.json, or the JSON file itself; models are not fetched from the network"
        raise TargetError("E0206", f'"{path}" cannot be read: {error.strerror}', help=help) from None
    except json.JSONDecodeError as error:
        span = Span(file, error.lineno, error.colno)
        raise TargetError("E0206", f"the config is not valid JSON: {error.msg}", span=span) from None
    except UnicodeDecodeError as error:
        raise TargetError("E0206", f'"{file}" is not UTF-8 text: {error.reason}', help="give a config.json") from None
    if not isinstance(data, dict) or "model_type" not in data:
        raise TargetError(
            "E0206", f'"{file}" has no "model_type"', expected="a Hugging Face model config", span=Span(file, 1)
        )
    return data


def _config(transformers: Any, file: str, data: dict[str, Any]) -> Any:
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    kind = data["model_type"]
    if kind not in mapping:
        raise TargetError(
            "E0208",
            f'transformers {transformers.__version__} does not know the model type "{kind}"',
            span=Span(file, 1),
            help=did_you_mean(str(kind), mapping.keys()),
        )
    from huggingface_hub.errors import StrictDataclassError

    try:
        return mapping[kind].from_dict(data)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        message = " ".join(str(error).split())
        raise TargetError(
            "E0206", f'the config is not a valid "{kind}" config: {message}', span=Span(file, 1)
        ) from None


def _model_class(transformers: Any, config: Any, file: str) -> type[nn.Module]:
    """The class in `architectures`, else the causal language model of the config's type."""
    named = list(config.architectures or ())
    if named:
        architecture_class = getattr(transformers, named[0], None)
        if isinstance(architecture_class, type) and issubclass(architecture_class, nn.Module):
            return architecture_class
        known = [name for name in dir(transformers) if name.endswith("ForCausalLM")]
        raise TargetError(
            "E0208",
            f'architecture "{named[0]}" is not in transformers {transformers.__version__}',
            span=Span(file, 1),
            help=did_you_mean(named[0], known),
        )
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in causal:
        raise TargetError(
            "E0208",
            f'the config names no architecture, and "{config.model_type}" has no causal language model',
            span=Span(file, 1),
            help='add "architectures": ["..."] to the config',
        )
    model_class: type[nn.Module] = causal[type(config)]
    return model_class


def _inputs(
    transformers: Any, model_class: type[nn.Module], config: Any, request: Request, seq: int, file: str
) -> dict[str, ModelInput]:
    """The model's inputs by name, with labels for training."""
    labelled = request.mode is Mode.TRAIN
    try:
        return model_inputs(transformers, model_class, config, request.batch, seq, labelled=labelled)
    except NoInputs as reason:
        raise TargetError(
            "E0209",
            f'"{model_class.__name__}" {reason}, so its inputs cannot be made from batch and seq',
            span=Span(file, 1),
            help='write a function that returns (model, inputs) and give it as "file.py:name"',
        ) from None


def _sequence(config: Any, request: Request, file: str) -> int:
    """Tokens per example: the requested number, if the model has as many positions."""
    text = config.get_text_config()
    longest = getattr(text, "max_target_positions", None) or getattr(text, "max_position_embeddings", None)
    if not isinstance(longest, int):
        return request.seq or DEFAULT_SEQUENCE
    if request.seq is not None and request.seq > longest:
        raise TargetError(
            "E0209",
            f"seq {request.seq} is longer than the model's {longest} positions",
            span=Span(file, 1),
            help=f'ask for at most {longest}, or raise "max_position_embeddings"',
        )
    return request.seq or min(longest, DEFAULT_SEQUENCE)


def _build(model_class: type[nn.Module], config: Any, folder: str, request: Request) -> tuple[nn.Module, bool]:
    """The model, and whether it has values: the folder's weights, random ones up to 2 GB, else fake parameters."""
    dtype = DTYPES[request.dtype] if request.dtype else torch.float32
    if any(os.path.isfile(os.path.join(folder, name)) for name in _WEIGHTS):
        return _in_float64(_with_weights(model_class, config, folder, dtype), dtype), True
    with fake_parameters(), default_dtype(dtype), _no_initial_values():
        model = model_class(config)
    if sum(p.numel() * p.element_size() for p in model.parameters()) > LARGEST_RANDOM_BYTES:
        return model, False
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(default_dtype(dtype))
        torch.manual_seed(request.seed)
        return _in_float64(model_class(config), dtype), True


def _in_float64(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model, all of whose floating tensors are float64 if that is asked for: some make single ones in float32."""
    if dtype is torch.float64:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return model


def _no_initial_values() -> Any:
    """Inside, models are built without initialising weights, which fails on fake parameters."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


def _with_weights(model_class: Any, config: Any, folder: str, dtype: torch.dtype) -> nn.Module:
    from safetensors import SafetensorError

    folder = folder or "."
    try:
        model, report = model_class.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        message = str(error).strip().split("\n")[0]
        raise _bad_weights(folder, f"cannot be loaded: {message}") from None
    absent = sorted((*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])))
    if absent:
        raise _bad_weights(folder, f'have no "{absent[0]}" of the config\'s shape')
    loaded: nn.Module = model
    return loaded


def _bad_weights(folder: str, problem: str) -> TargetError:
    return TargetError("E0206", f'the weights in "{folder}" {problem}', help="mend the files, or remove them")
