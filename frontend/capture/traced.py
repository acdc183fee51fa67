"""The module that is traced in place of the user's: it takes and returns only tensors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..captured import CaptureError, ForwardResult, Mode, OutputTree, TensorLeaf
from ..held_tensors.aliases import AliasesResolved, ModelTensors
from ..held_tensors.objects import PLAIN_TYPES, unchanged
from .call import BoundCall
from .cumulative_norms import cumulative_norms_traced
from .inference_mode import inference_mode_as_no_grad
from .own_gradients import own_gradients_kept
from .precision import cast_inputs, casts_of_parameters, parameters_replaced_by_casts
from .python_randomness import python_randomness_recorded
from .seeding import seeding_refused
from .side_effects import RecordValueReads, SideEffects, side_effects_recorded
from .value_checks import without_value_checks

MODEL_ATTRIBUTE = "_stretto_model"
"""The attribute of the traced module that holds the user's model; the names of its tensors begin with it."""
_ARGUMENTS = "_stretto_arguments"
"""That of a module whose buffers are the tensors of objects among the arguments."""


@dataclass
class Result:
    """The result of a traced forward. It is not an attribute of the module itself, as export restores those."""

    tree: OutputTree = field(default_factory=lambda: OutputTree(pytree.tree_flatten(None)[1], ()))
    names: tuple[str, ...] = ()
    differentiable: tuple[int, ...] = ()
    """Indices of the outputs that have a tangent."""
    constant: tuple[int, ...] = ()
    """Indices of the outputs that depend on no trainable parameter."""
    effects: SideEffects = field(default_factory=SideEffects)


class TracedModel(nn.Module):
    """Calls the user's model, returns the tensors of its result as a tuple, and records the structure in `result`.

    If there is a scalar floating loss among the outputs, only it is differentiable, and the others are detached. With
    `compute` the model runs on casts of its parameters and floating inputs to that dtype.
    """

    def __init__(
        self, model: nn.Module, call: BoundCall, mode: Mode, *, loss_only: bool, compute: torch.dtype | None = None
    ) -> None:
        super().__init__()
        setattr(self, MODEL_ATTRIBUTE, model)
        self.training = model.training
        self.call = call
        self.mode = mode
        self.loss_only = loss_only
        self.compute = compute
        self.result = Result()
        arguments = nn.Module()
        for index, tensor in enumerate(call.buffers.values()):
            arguments.register_buffer(str(index), tensor)
        setattr(self, _ARGUMENTS, arguments)
        self._tensors = ModelTensors(self)

    @property
    def forward_result(self) -> ForwardResult:
        """What the traced forward returned around its tensors, and what it read."""
        reads = {path: tuple(names) for path, names in self.result.effects.reads.items()}
        return ForwardResult(self.result.tree, self.result.constant, reads)

    @property
    def held_names(self) -> dict[str, str]:
        """By name in the graph: the tensors of objects among the arguments."""
        return {f"{_ARGUMENTS}.{index}": name for index, name in enumerate(self.call.buffers)}

    @property
    def replaced_buffers(self) -> tuple[str, ...]:
        """The names of the buffers that the traced forward replaced."""
        return tuple(f"{MODEL_ATTRIBUTE}.{path}" for path in self.result.effects.replaced_buffers)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self.call.arguments(cast_inputs(tensors, self.compute))
        model = getattr(self, MODEL_ATTRIBUTE)
        casts = casts_of_parameters(model, self.compute)
        self.result.effects = SideEffects()
        with (
            own_gradients_kept() if self.mode is Mode.TRAIN else nullcontext(),
            parameters_replaced_by_casts(casts),
            cumulative_norms_traced(model),
            without_value_checks(),
            inference_mode_as_no_grad(),
            side_effects_recorded(model, self.result.effects),
            RecordValueReads(self.result.effects),
            python_randomness_recorded(model, self.result.effects.python_draws),
            seeding_refused(model),
            unchanged(tuple(self.call.objects.values())),
            AliasesResolved(self._tensors.replacements()) as aliases,
        ):
            result = pytree.tree_map(aliases.resolve, model(*args, **kwargs))
        if self.loss_only:
            result = loss_of(result)
        return self._flatten(result, tensors)

    def _flatten(self, result: Any, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        paths, spec = pytree.tree_flatten_with_path(result)
        outputs: list[torch.Tensor] = []
        names: list[str] = []
        leaves: list[Any] = []
        seen: dict[int, int] = {}
        for path, leaf in paths:
            if isinstance(leaf, torch.Tensor):
                if id(leaf) not in seen:
                    seen[id(leaf)] = len(outputs)
                    outputs.append(leaf)
                    names.append(_path_name(path))
                leaves.append(TensorLeaf(seen[id(leaf)]))
            elif isinstance(leaf, PLAIN_TYPES):
                leaves.append(leaf)
            elif (argument := self.call.leaf_of(leaf)) is not None:
                leaves.append(argument)
            else:
                raise CaptureError(
                    "E0214",
                    f'forward returns a value of type "{type(leaf).__qualname__}"',
                    expected="tensors and plain values, or lists, tuples and dicts of them",
                    help="return the tensors themselves, or register the type with torch.utils._pytree",
                )
        differentiable = _differentiable(outputs) if self.mode is Mode.TRAIN else ()
        self.result.tree = OutputTree(spec, tuple(leaves))
        self.result.names = tuple(names)
        self.result.differentiable = differentiable
        self.result.constant = tuple(index for index, tensor in enumerate(outputs) if not tensor.requires_grad)
        not_owned = {id(tensor) for tensor in (*inputs, *self.parameters(), *self.buffers())}
        return tuple(_owned(tensor, position in differentiable, not_owned) for position, tensor in enumerate(outputs))


def _path_name(path: tuple[Any, ...]) -> str:
    """The path of a tensor in the result: "loss", "hidden_states[2]", "[0]"; empty for a single tensor."""
    if path and isinstance(path[0], pytree.MappingKey):
        return str(path[0].key) + pytree.keystr(path[1:])
    return pytree.keystr(path).lstrip(".")


def _differentiable(outputs: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The scalar floating outputs that require a gradient, else all outputs that do."""
    candidates = [index for index, tensor in enumerate(outputs) if tensor.requires_grad and tensor.is_floating_point()]
    scalars = [index for index in candidates if outputs[index].dim() == 0]
    return tuple(scalars or candidates)


def _owned(tensor: torch.Tensor, differentiable: bool, not_owned: set[int]) -> torch.Tensor:
    """The output, cloned if it is a view or an input, and detached if it is not differentiable."""
    if id(tensor) in not_owned or tensor._is_view():
        tensor = tensor.clone()
    return tensor if differentiable or not tensor.requires_grad else tensor.detach()


def loss_of(result: Any) -> torch.Tensor:
    """The scalar floating loss in what a forward returned: the result itself, its `loss`, or its one scalar.

    Errors: E0213 if there is none, or more than one.
    """
    named = result.get("loss") if isinstance(result, dict) else getattr(result, "loss", None)
    candidates = [named] if isinstance(named, torch.Tensor) else pytree.tree_leaves(result)
    scalars = [leaf for leaf in candidates if isinstance(leaf, torch.Tensor) and _is_loss(leaf)]
    if len(scalars) == 1:
        return scalars[0]
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in candidates if isinstance(leaf, torch.Tensor)) or "no tensor"
    raise CaptureError(
        "E0213",
        f"training needs one scalar loss, but forward returns {shapes}",
        expected="a scalar floating tensor that requires a gradient, or an object with such a .loss",
        help="pass the labels, or return the loss from forward",
    )


def _is_loss(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 0 and tensor.is_floating_point() and tensor.requires_grad
