"""The models that everything must work for: examples' targets, each with the plans that are tried on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import Compiled, CompileRequest, Observer, Options
from stretto.dsl import Plan
from stretto.frontend.captured import Mode
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request
from stretto.frontend.to_ir import Floats
from stretto.ir.module import Module

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCH, SEQ = 4, 8


@dataclass(frozen=True)
class Entry:
    """A target under `examples/`, and its sharded plans by file."""

    target: str
    plans: tuple[str, ...]
    labels: tuple[str, ...] = ("labels",)
    """The inputs that are left out in inference."""


ZOO: dict[str, Entry] = {
    "gpt": Entry("targets.py:gpt", ("dp_tp.plan",), labels=()),
    "llama": Entry("configs/llama_tiny.json", ("dp_tp.plan", "tp_sequence.plan")),
    "gpt2": Entry("configs/gpt2_tiny.json", ("gpt2/dp_tp.plan",)),
    "qwen2": Entry("configs/qwen2_tiny.json", ("dp_tp.plan", "tp_sequence.plan")),
    "mixtral": Entry("configs/mixtral_tiny.json", ("mixtral/tp.plan",)),
    "mixtral_grouped": Entry("configs/mixtral_grouped_tiny.json", ("mixtral/tp.plan",)),
    "bert": Entry("configs/bert_tiny.json", ("bert/tp.plan",)),
    "vit": Entry("configs/vit_tiny.json", ("vit/tp.plan",)),
    "dit": Entry("models/dit.py:dit", ("dit/tp.plan",), labels=("noise",)),
    "unet": Entry("models/unet.py:unet", ("unet/channels.plan",), labels=("noise",)),
    "resnet": Entry("models/resnet.py:resnet", ("resnet/channels.plan",)),
    "translator": Entry("models/translator.py:translator", ("dp_tp.plan",)),
}


def target_of(name: str) -> str:
    """What the command line calls an entry."""
    path = EXAMPLES / ZOO[name].target
    return f"hf:{path}" if path.suffix == ".json" else str(path)


def compiled(
    name: str, plan: str, mode: Mode, after: Callable[[str, Module], None] | None = None, *, rows: int | None = None
) -> Compiled:
    """The program of an entry in float64, as `stretto compile TARGET --plan FILE --dtype float64` makes it.

    With `rows` its batch has so many, padded where ranks cannot share them, as those of dynamic dims are.
    """
    target = load_target(target_of(name), Request(mode=mode, batch=BATCH, seq=SEQ))
    inputs = {key: value[:rows] for key, value in target.inputs.items()} if rows else target.inputs
    if mode is Mode.INFER:
        inputs = {key: value for key, value in inputs.items() if key not in ZOO[name].labels}
    options = Options(
        mode=mode,
        loss_only=mode is Mode.TRAIN,
        floats=Floats.FLOAT64,
        arguments={"inputs": target.input_ranges},
        padded_inputs=tuple(inputs) if rows else (),
    )
    file = EXAMPLES / "plans" / plan
    request = CompileRequest.of(target.model, (), inputs, Plan.load(file), options)
    return compile_program(request, Observer(module=after))
