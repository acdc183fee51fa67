"""The result of capture: a functional graph, the meaning of its inputs and outputs, and a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..diagnostics import StrettoError

Reads = Mapping[str, tuple[str, ...]]
"""By module path, the names of attributes that the forward has read, existing or not."""
META_KEY = "stretto"
"""The key of a node's `Origin` in `node.meta`."""


class CaptureError(StrettoError):
    """The model, or its call, cannot be captured; the span is in the user's file."""


class Mode(StrEnum):
    """The mode of a program: a training step (forward and backward), or only the forward."""

    TRAIN = "train"
    INFER = "infer"


class InputKind(StrEnum):
    """The kind of an input; placeholders are in this order."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    INPUT = "input"
    RANDOM = "random"
    """The RNG state (seed, step), if the graph has random ops."""
    TANGENT = "tangent"


class OutputKind(StrEnum):
    """The kind of an output; outputs are in this order."""

    OUTPUT = "output"
    GRADIENT = "gradient"
    BUFFER = "buffer"


@dataclass(frozen=True)
class Origin:
    """The position in the user's model that a node comes from.

    A backward node has the origin of its forward node. A node that adds two gradients of one value has the origin of
    the operand that is computed last, which is the first use of the value in the forward.
    """

    module_path: str = ""
    """The module's dotted name ("model.layers.3.self_attn.q_proj"); empty for the model itself or if unknown."""
    file: str = ""
    """The user's file, or that of the model's library; empty if unknown."""
    line: int = 0
    """1-based; 0 if unknown."""
    backward: bool = False
    seq_nr: int = -1
    """Autograd's number, which pairs a backward node with its forward node; -1 if there is none."""


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
    """The path inside the model's result ("" for a single tensor), or the parameter's or buffer's name."""
    index: int
    """For outputs the position among the result's tensors, for the other kinds the position among `Capture.inputs`."""


@dataclass(frozen=True)
class OutputTree:
    """The structure of the model's result, without its tensors."""

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    """A `TensorLeaf` for each tensor, an `ArgumentLeaf` for an argument; anything else is a constant."""

    def rebuild(self, tensors: Sequence[torch.Tensor], arguments: Sequence[Any] = ()) -> Any:
        """The model's own result structure around `tensors`, in the order of the outputs of kind "output".

        `arguments` are the leaves of the call's arguments.
        """

        def filled(leaf: Any) -> Any:
            match leaf:
                case TensorLeaf(index):
                    return tensors[index]
                case ArgumentLeaf(index):
                    return arguments[index]
            return leaf

        return pytree.tree_unflatten(map(filled, self.leaves), self.spec)


@dataclass(frozen=True)
class TensorLeaf:
    """Stands for output `index` in the model's result."""

    index: int


@dataclass(frozen=True)
class ArgumentLeaf:
    """Stands for leaf `index` of the call's arguments in the model's result, such as the cache that it was given."""

    index: int


@dataclass(frozen=True)
class ForwardResult:
    """What a forward returned around its tensors, and the attributes that it read."""

    output_tree: OutputTree
    constant: tuple[int, ...] = ()
    """Indices of the outputs that depend on no trainable parameter: in eager mode they require no gradient."""
    reads: Reads = field(default_factory=dict)


@dataclass(frozen=True)
class Capture:
    """A model as a functional aten graph, with the metadata to call it.

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
    """The forward before autograd as JSON (the program's `reference.json`)."""
    result: ForwardResult
    unused_parameters: tuple[str, ...] = ()
    """Trainable parameters, and inputs that require a gradient, on which no differentiable output depends."""
    differentiable: tuple[int, ...] = field(default=())
    """Indices of the outputs that have a tangent; with one scalar among them the tangent is 1."""
    nonlinear: tuple[str, ...] = ()
    """Custom autograd functions whose backward is not linear in the gradient that it gets."""
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The buffers that are no buffers of the model: tensors in objects among the arguments, by name."""
    traced_whole: str = ""
    """Why many layers were traced one by one, where one may expect that equal ones are traced once."""


def module_text(node: fx.Node) -> str:
    """In messages, after the name of a node's op: the module that calls it; empty where it is the model itself."""
    path = origin_of(node).module_path
    return f' in module "{path}"' if path else ""


def origin_of(node: fx.Node) -> Origin:
    """The node's origin; an empty one for nodes that capture did not make."""
    origin = node.meta.get(META_KEY)
    return origin if isinstance(origin, Origin) else Origin()
