"""Every example plan on the examples' models at sizes of a few elements, compiled once a process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import torch
from stretto.driver.compile.compile_program import compile_capture
from stretto.driver.compile.request import CAPTURED, Observer, Options
from stretto.dsl import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode
from stretto.frontend.to_ir import Floats
from stretto.ir.module import Module
from stretto.runtime.program.program import Program
from torch import nn

from ..models.zoo import EXAMPLES, ZOO
from ..models.zoo import compiled as compiled_of_zoo

VOCABULARY, BATCH, SEQUENCE, LAYERS = 19, 4, 6, 2
"""Two ranks do not divide the vocabulary."""
LEVELS = ("partition-tensors", "hoist-collectives", "start-collectives")
"""The passes after which modules are altered."""


@dataclass(frozen=True)
class Case:
    """A model under a plan of the examples, compiled for training or for inference."""

    model: str
    plan: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.model} {self.plan} {self.mode}"


@dataclass(frozen=True)
class Compiled:
    """What is altered: the modules after some passes, as text, and the program."""

    texts: dict[str, str]
    """By pass; as captured under `CAPTURED`."""
    program: Program
    plan: Plan

    def module(self, after: str) -> Module:
        """A fresh module, as a pass left it."""
        return Module.parse(self.texts[after])


def _gpt() -> nn.Module:
    if "stretto_example_gpt" not in sys.modules:
        spec = spec_from_file_location("stretto_example_gpt", EXAMPLES / "gpt.py")
        assert spec is not None and spec.loader is not None
        sys.modules["stretto_example_gpt"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["stretto_example_gpt"])
    gpt = sys.modules["stretto_example_gpt"]
    config = gpt.Config(vocabulary=VOCABULARY, hidden=8, layers=LAYERS, heads=2, positions=SEQUENCE)
    model: nn.Module = gpt.GPT(config)
    return model


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=10, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=SEQUENCE,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=LAYERS, n_head=2, n_positions=SEQUENCE, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, str]]] = {
    "gpt": (_gpt, ("tokens", "targets")),
    "llama": (_llama, ("input_ids", "labels")),
    "gpt2": (_gpt2, ("input_ids", "labels")),
}
"""How each model is made, and what its call takes."""
_FOLDERS = {"gpt": ".", "llama": ".", "gpt2": "gpt2"}
"""Where the plans of a model are."""


def cases() -> list[Case]:
    """Every model with every plan that is for it, training before inference."""
    return [
        Case(model, str(path.relative_to(EXAMPLES / "plans")), mode)
        for mode in Mode
        for model, folder in _FOLDERS.items()
        for path in sorted((EXAMPLES / "plans" / folder).glob("*.plan"))
    ]


@cache
def _captured(name: str, mode: Mode) -> tuple[Capture, nn.Module]:
    make, inputs = _MODELS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    batch: dict[str, Any] = {tensor: torch.zeros(BATCH, SEQUENCE, dtype=torch.int64) for tensor in inputs}
    return capture(model, (), batch, mode=mode), model


def other_cases() -> list[Case]:
    """Training of the examples' other models, each under the plan that was written for it."""
    others = {name: entry.plans[-1] for name, entry in ZOO.items() if name not in _MODELS}
    return [Case(name, plan, Mode.TRAIN) for name, plan in others.items() if "/" in plan]


@cache
def compiled(case: Case) -> Compiled:
    """The modules and the program of a case, in float64."""
    plan = Plan.parse((EXAMPLES / "plans" / case.plan).read_text())
    texts: dict[str, str] = {}

    def keep(name: str, module: Module) -> None:
        if name in (CAPTURED, *LEVELS):
            texts[name] = module.text()

    if case.model not in _MODELS:
        return Compiled(texts, compiled_of_zoo(case.model, case.plan, case.mode, keep).program, plan)
    captured, model = _captured(case.model, case.mode)
    options = Options(mode=case.mode, floats=Floats.FLOAT64)
    return Compiled(texts, compile_capture(captured, model, plan, options, Observer(module=keep)).program, plan)
