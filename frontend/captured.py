"""What capture hands on: a functional graph, the meaning of its inputs and outputs, and a reference to check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..diagnostics import StrettoError

Reads = Mapping[str, tuple[str, ...]]
"""By module path the names of attributes that a forward has asked its modules for, found or not."""
META_KEY = "stretto"
"""Where a node keeps its `Origin`: `node.meta[META_KEY]`."""


class CaptureError(StrettoError):
    """The model, or how it was called, cannot be captured. The place is the user's own file and line."""


class Mode(StrEnum):
    """What a program is for: a training step (forward and backward), or the forward alone."""

    TRAIN = "train"
    INFER = "infer"


class InputKind(StrEnum):
    """Where an input's value comes from. Placeholders stand in this order."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    INPUT = "input"
    RANDOM = "random"
    """Seed and step of the random numbers; there where the graph draws any."""
    TANGENT = "tangent"


class OutputKind(StrEnum):
    """Where an output's value goes. Outputs stand in this order."""

    OUTPUT = "output"
    GRADIENT = "gradient"
    BUFFER = "buffer"


@dataclass(frozen=True)
class Origin:
    """The place in the user's model that a node comes from.

    A backward node has the place of the forward node it is the derivative of. A node that adds two gradients of one
    value has the place of the operand computed last: the first use of that value in the forward.
    """

    module_path: str = ""
    """The model's own dotted name ("model.layers.3.self_attn.q_proj"); empty for the model itself or when unknown."""
    file: str = ""
    """The user's file, or the file of the library the model comes from; empty when unknown."""
    line: int = 0
    """1-based; 0 when unknown."""
    backward: bool = False
    seq_nr: int = -1
    """Autograd's number, which pairs a backward node with its forward node; -1 when there is none."""


@dataclass(frozen=True)
class CapturedTensor:
    """One placeholder of the graph."""

    name: str
    """The model's name for parameters and buffers, the argument's name for inputs, the output's for tangents."""
    kind: InputKind
    aliases: tuple[str, ...]
    """All names of a tied parameter or buffer, `name` first; empty for the other kinds."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    index: int
    """For inputs the position among the tensors of the call, for tangents the output's index, else -1."""


@dataclass(frozen=True)
class CapturedOutput:
    """One result of the graph, in the order of the graph's output node."""

    kind: OutputKind
    name: str
    """The path inside the model's result (""  for a lone tensor), or the parameter's or buffer's name."""
    index: int
    """For outputs the position among the result's tensors, for the other kinds the position among `Capture.inputs`."""


@dataclass(frozen=True)
class OutputTree:
    """How to rebuild what the model returns from the list of its tensors."""

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    """A `TensorLeaf` for each tensor; anything else is a constant that the forward returned."""

    def rebuild(self, tensors: list[torch.Tensor]) -> Any:
        """The model's own result structure around `tensors`, which stand in the order of the "output" outputs."""
        leaves = [tensors[leaf.index] if isinstance(leaf, TensorLeaf) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class TensorLeaf:
    """A place in the model's result that is filled by output number `index`."""

    index: int


@dataclass(frozen=True)
class Capture:
    """A model as one functional aten graph with all that is needed to call it.

    The graph takes the tensors of `inputs` in that order and returns the tensors of `outputs` in that order. Every node
    has a fake tensor (or a tuple of them) in `meta["val"]` and an `Origin` in `meta["stretto"]`.
    """

    graph: fx.GraphModule
    mode: Mode
    inputs: tuple[CapturedTensor, ...]
    outputs: tuple[CapturedOutput, ...]
    constants: Mapping[str, torch.Tensor]
    """Values of the inputs of kind "constant", by name."""
    reference: dict[str, Any]
    """The forward before autograd as JSON-able data (the program's `reference.json`)."""
    output_tree: OutputTree
    unused_parameters: tuple[str, ...] = ()
    """Trainable parameters, and inputs that want a gradient, on which no differentiable output depends."""
    differentiable: tuple[int, ...] = field(default=())
    """Indices of the outputs that have a tangent; with one scalar among them the tangent is 1."""
    constant: tuple[int, ...] = ()
    """Indices of the outputs that no trainable parameter has a part in: in eager mode they require no gradient."""
    reads: Reads = field(default_factory=dict)


def origin_of(node: fx.Node) -> Origin:
    """The node's origin; an empty one for nodes that capture did not make."""
    origin = node.meta.get(META_KEY)
    return origin if isinstance(origin, Origin) else Origin()
