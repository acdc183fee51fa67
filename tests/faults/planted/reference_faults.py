"""Faults of the other files of a sealed folder: the reference, the manifest, the module, the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from .finding import Finder
from .folder_editing import Plant, in_json, in_text, seal
from .program_folder_faults import GPT, FolderFault, K, Q
from .stage_folder_faults import NORMS, PIPELINE

MEAN, VAR = "norm.running_mean", "norm.running_var"
REFERENCE, MANIFEST, WEIGHTS = "reference.json", "manifest.json", "weights.safetensors"
RIGHT = "the program is right, and a check of it asks for less"


def instruction(op: str, edit: Callable[[dict[str, Any]], None], count: int = 0) -> Plant:
    """An edit of one instruction of the reference."""

    def in_place(reference: Any) -> None:
        edit([c for c in reference["code"] if c["op"] == op][count])

    return in_json(REFERENCE, in_place)


def argument(index: int, value: object) -> Callable[[dict[str, Any]], None]:
    """Another argument at a position."""

    def in_place(code: dict[str, Any]) -> None:
        code["args"][index] = value

    return in_place


def stated(key: str, value: object) -> Plant:
    """Something else in what the reference says of the check."""

    def in_place(reference: Any) -> None:
        reference["stated"][key] = value

    return in_json(REFERENCE, in_place)


def parameter_not_stated(reference: Any) -> None:
    reference["stated"]["trained"].remove(Q)


def nothing_stated(reference: Any) -> None:
    del reference["stated"]


def no_outputs(reference: Any) -> None:
    reference["outputs"] = []


def inputs_renamed(reference: Any) -> None:
    names = {Q: K, K: Q}
    for record in reference["inputs"]:
        record["name"] = names.get(record["name"], record["name"])


def tokens_for_targets(reference: Any) -> None:
    slots = {record["name"]: index for index, record in enumerate(reference["inputs"])}
    embedding = next(c for c in reference["code"] if c["op"] == "aten.embedding.default")
    embedding["args"][1] = {"%": slots["targets"]}


def told(key: str, value: object) -> Plant:
    """Something else in the manifest."""

    def in_place(manifest: Any) -> None:
        manifest[key] = value

    return in_json(MANIFEST, in_place)


def no_ranges(manifest: Any) -> None:
    manifest["arguments"]["inputs"] = {}


def reduced_in_bfloat16(manifest: Any) -> None:
    manifest["arguments"]["reduce"] = "bfloat16"


def weights(names: dict[str, str], factor: float = 1.0) -> Plant:
    """Other values in the file of weights: exchanged, or multiplied."""

    def plant(folder: Path) -> None:
        values = load_file(folder / WEIGHTS)
        wrong = {name: factor * values[other] for name, other in names.items()}
        save_file({**{name: value.clone() for name, value in values.items()}, **wrong}, folder / WEIGHTS)
        seal(folder)

    return plant


REFERENCE_FAULTS: dict[str, FolderFault] = {
    "reference: layer norm with another epsilon": FolderFault(
        GPT, instruction("aten.layer_norm.default", argument(4, 1e-6)), Finder.RUN_CHECK
    ),
    "reference: both layers drop the same elements": FolderFault(
        GPT, instruction("stretto.random.default", argument(3, 0), 1), Finder.RUN_CHECK
    ),
    "reference: dropout keeps another share": FolderFault(
        GPT, instruction("stretto.random.default", argument(4, 1 << 31)), Finder.RUN_CHECK
    ),
    "reference: attention is not causal": FolderFault(
        GPT, instruction("aten.scaled_dot_product_attention.default", argument(5, False)), Finder.RUN_CHECK
    ),
    "reference: embeds the targets": FolderFault(GPT, in_json(REFERENCE, tokens_for_targets), Finder.RUN_CHECK),
    "reference: names of two parameters exchanged": FolderFault(
        GPT, in_json(REFERENCE, inputs_renamed), Finder.RUN_CHECK
    ),
    "reference: no outputs": FolderFault(GPT, in_json(REFERENCE, no_outputs), Finder.RUN_CHECK),
    "reference: a trained parameter is not stated": FolderFault(
        GPT, in_json(REFERENCE, parameter_not_stated), Finder.RUN_CHECK
    ),
    "reference: the check is said to be one of inference": FolderFault(GPT, stated("mode", "infer"), Finder.RUN_CHECK),
    "reference: no output is differentiated": FolderFault(GPT, stated("differentiated", []), Finder.RUN_CHECK),
    "reference: judged as bfloat16": FolderFault(GPT, stated("dtype", "bfloat16"), Finder.RUN_CHECK),
    "reference: tokens are said to be 0 alone": FolderFault(
        GPT, stated("ranges", {"tokens": {"high": 1}, "targets": {"high": 1}}), Finder.RUN_CHECK, RIGHT
    ),
    "reference: states nothing, as those of older versions": FolderFault(
        GPT, in_json(REFERENCE, nothing_stated), Finder.RUN_CHECK, RIGHT
    ),
    "manifest: a mesh of four data ranks": FolderFault(GPT, told("mesh", [["dp", 4], ["tp", 2]]), Finder.VERIFY_FOLDER),
    "manifest: axes in another order": FolderFault(
        GPT, told("mesh", [["tp", 2], ["dp", 2]]), equivalent="ranks have other numbers, and compute the same"
    ),
    "manifest: another axis": FolderFault(GPT, told("mesh", [["dp", 2], ["pp", 2]]), Finder.LOADING),
    "manifest: judged as bfloat16": FolderFault(GPT, told("dtype", "bfloat16"), Finder.RUN_CHECK),
    "manifest: a program for inference": FolderFault(GPT, told("mode", "infer"), Finder.AGAINST),
    "manifest: a newer format": FolderFault(GPT, told("format", 99), Finder.LOADING),
    "manifest: claims to have been checked": FolderFault(
        GPT, told("checked", {"result": "passed"}), equivalent="a claim that no command believes"
    ),
    "manifest: no ranges of integers": FolderFault(
        GPT, in_json(MANIFEST, no_ranges), equivalent="the reference states them"
    ),
    "manifest: gradients are to be reduced in bfloat16": FolderFault(
        GPT, in_json(MANIFEST, reduced_in_bfloat16), Finder.RUN_CHECK
    ),
    "module: layer norm with another epsilon": FolderFault(GPT, in_text("1.000000e-05", "1.000000e-06")),
    "module: a reduction takes the greatest": FolderFault(GPT, in_text('reduce = "sum"', 'reduce = "max"')),
    "module: a message to another stage": FolderFault(PIPELINE, in_text("peer = 1", "peer = 0")),
    "weights: two parameters exchanged": FolderFault(GPT, weights({Q: K, K: Q}), Finder.AGAINST),
    "weights: two buffers exchanged": FolderFault(NORMS, weights({MEAN: VAR, VAR: MEAN}), Finder.AGAINST),
    "weights: a tensor of the forward doubled": FolderFault(
        NORMS, weights({"lifted_tensor_0": "lifted_tensor_0"}, 2.0), Finder.AGAINST
    ),
}
