"""The origin of each node: module path, source line, forward or backward."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn

from ..diagnostics import Span
from .captured import META_KEY, Origin

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_REPEATED_CALL = re.compile(r"@\d+")
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_CONTEXTS = contextlib.__file__
"""Frames of context managers that pass an error on."""
_OURS = tuple(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), folder) + os.sep
    for folder in ("frontend", "driver")
)


def is_users_file(file: str) -> bool:
    """Whether a file belongs to the model's source: not to torch, to Stretto's tracing, or to generated code."""
    return not file.startswith((_TORCH, _CONTEXTS, *_OURS)) and not file.startswith("<")


def annotate(graph: fx.Graph, model_attribute: str) -> None:
    """Put an `Origin` into `meta["stretto"]` of every node.

    `model_attribute` is the traced module's attribute that holds the model; paths do not include it.
    """
    forward: dict[int, Origin] = {}
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        origin = _own_origin(node, model_attribute)
        if not origin.file and node.op == "call_function":
            origins = {operand: operand.meta[META_KEY] for operand in node.all_input_nodes}
            same = {operand: own for operand, own in origins.items() if own.backward == origin.backward}
            origin = (
                _of_latest(same, origin, position) or _paired(origin, forward) or _of_latest(origins, origin, position)
            ) or origin
        if not origin.backward:
            forward.setdefault(origin.seq_nr, origin)
        node.meta[META_KEY] = origin


def _own_origin(node: fx.Node, model_attribute: str) -> Origin:
    meta = node.meta
    backward = meta.get("partitioner_tag") == "is_backward"
    stack = meta.get("fwd_nn_module_stack" if backward else "nn_module_stack") or meta.get("nn_module_stack")
    file, line = source_line(meta.get("stack_trace") or "")
    seq_nr = meta.get("seq_nr", -1)
    # A sum of two gradients has a number past the forward's end, and the stack trace of the backward call.
    if backward and not stack:
        file, line = "", 0
    return Origin(_module_path(stack, model_attribute), file, line, backward, -1 if seq_nr is None else seq_nr)


def _of_latest(operands: Mapping[fx.Node, Origin], origin: Origin, position: Mapping[fx.Node, int]) -> Origin | None:
    """The origin of the operand computed last: for sums of gradients, and for nodes that tracing appends."""
    known = [operand for operand, own in operands.items() if own.file]
    if not known:
        return None
    latest = operands[max(known, key=position.__getitem__)]
    seq_nr = -1 if origin.backward else origin.seq_nr
    return Origin(latest.module_path, latest.file, latest.line, origin.backward, seq_nr)


def _paired(origin: Origin, forward: dict[int, Origin]) -> Origin | None:
    pair = forward.get(origin.seq_nr)
    if pair is None or not pair.file:
        return None
    return Origin(pair.module_path, pair.file, pair.line, True, origin.seq_nr)


def _module_path(stack: Any, model_attribute: str) -> str:
    """The innermost module's path in the model: "_stretto_model.layers.0@1" becomes "layers.0"."""
    if not stack:
        return ""
    path = _REPEATED_CALL.sub("", str(next(reversed(stack.values()))[0]))
    return "" if path == model_attribute else path.removeprefix(model_attribute + ".")


@lru_cache(maxsize=4096)
def source_line(stack_trace: str) -> tuple[str, int]:
    """File and line of the innermost frame in the model's source; ("", 0) if there is none."""
    for match in reversed(list(_FRAME.finditer(stack_trace))):
        if is_users_file(match["file"]):
            return match["file"], int(match["line"])
    return "", 0


def forward_path(node: fx.Node, model_attribute: str) -> str:
    """The module path of a node of a forward."""
    return _module_path(node.meta.get("nn_module_stack"), model_attribute)


def source_span(node: fx.Node) -> Span | None:
    """The source span of a node, for errors."""
    origin = node.meta.get(META_KEY)
    file, line = (origin.file, origin.line) if origin else source_line(node.meta.get("stack_trace") or "")
    return line_span(file, line) if file else None


def line_span(file: str, line: int) -> Span:
    """The span of a whole source line, with its text if the file can be read."""
    text = linecache.getline(file, line).rstrip("\n")
    stripped = text.strip()
    return Span(file, line, len(text) - len(text.lstrip()) + 1, max(1, len(stripped)), text)


def forward_span(model: nn.Module) -> Span | None:
    """The source span of the model's forward."""
    code = getattr(inspect.unwrap(model.forward), "__code__", None)
    return None if code is None else line_span(code.co_filename, code.co_firstlineno)
