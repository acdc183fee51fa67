"""A call of a model: its tensors with names, and its other arguments as constants."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..captured import ArgumentLeaf, CaptureError
from ..held_tensors.objects import PLAIN_TYPES, HeldObject, held_object
from ..metadata import forward_span


@dataclass(frozen=True)
class TensorArgument:
    """Stands for input tensor `index` in the arguments."""

    index: int


@dataclass(frozen=True)
class BoundCall:
    """The arguments of a call: named tensors, objects that hold tensors, everything else constant.

    Calls with equal `structure` differ only in their tensors: with equal shapes and dtypes they share a captured graph.
    """

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    signature: inspect.Signature

    @property
    def structure(self) -> tuple[str, str]:
        """The nesting and the constants of the arguments, which the captured graph depends on."""
        return str(self.spec), repr(self.leaves)

    @property
    def differentiable(self) -> tuple[bool, ...]:
        """For each tensor, whether it requires a gradient."""
        return tuple([tensor.requires_grad for tensor in self.tensors])

    def arguments(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments of the call with other tensors."""
        leaves = [tensors[leaf.index] if isinstance(leaf, TensorArgument) else _value(leaf) for leaf in self.leaves]
        return _spread(self.signature, pytree.tree_unflatten(leaves, self.spec))

    @property
    def objects(self) -> dict[int, HeldObject]:
        """The objects that hold tensors, by position among the leaves."""
        return {index: leaf for index, leaf in enumerate(self.leaves) if isinstance(leaf, HeldObject)}

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """The tensors that they hold, by name, such as "cache.layers.0.keys"."""
        return {name: tensor for held in self.objects.values() for name, tensor in held.tensors.items()}

    @property
    def opaque(self) -> tuple[int, ...]:
        """What the captured graph depends on of them beside the structure: ids, unique in the process."""
        return tuple([number for held in self.objects.values() for number in held.opaque])

    def leaf_of(self, value: Any) -> ArgumentLeaf | None:
        """What stands for such an object in a result."""
        found = (ArgumentLeaf(index) for index, held in self.objects.items() if held.value is value)
        return next(found, None)

    def values(self) -> tuple[Any, ...]:
        """The leaves, with the objects themselves."""
        return tuple(map(_value, self.leaves))


NamedTensors = Callable[[], Iterable[tuple[str, torch.Tensor]]]


def bind_call(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], own: NamedTensors | None = None
) -> BoundCall:
    """Bind the arguments to the names of `model.forward`; `own` gives the model's tensors by name, if they are known.

    `use_cache` defaults to False, as a cache that grows with each call is not part of a step. Errors: E0210 for a
    missing or unexpected argument, E0211 for an argument that is neither a tensor nor a plain value nor holds some,
    E0212 for a tensor of an object under the name of a buffer.
    """
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            "E0210",
            f"{type(model).__name__}.forward cannot be called with these arguments: {error}",
            span=forward_span(model),
            help=f"{_unknown(signature, kwargs)}its signature is forward{signature}",
        ) from None
    arguments = dict(bound.arguments)
    if "use_cache" in signature.parameters:
        arguments.setdefault("use_cache", False)
    arguments = {name: arguments[name] for name in signature.parameters if name in arguments}
    return _flatten(own or (lambda: _tensors_of(model)), signature, arguments)


def _unknown(signature: inspect.Signature, kwargs: Mapping[str, Any]) -> str:
    """The help about keywords that the signature lacks."""
    unknown = [f'"{name}"' for name in kwargs if name not in signature.parameters]
    return f"it has no argument {', '.join(unknown)}; " if unknown else ""


def _tensors_of(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    return (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))


def _flatten(own: NamedTensors, signature: inspect.Signature, arguments: dict[str, Any]) -> BoundCall:
    paths, spec = pytree.tree_flatten_with_path(arguments)
    names: list[str] = []
    tensors: list[torch.Tensor] = []
    leaves: list[Any] = []
    for path, leaf in paths:
        name = _leaf_name(signature, path)
        if isinstance(leaf, torch.Tensor):
            leaves.append(TensorArgument(len(tensors)))
            names.append(name)
            tensors.append(leaf)
        elif isinstance(leaf, PLAIN_TYPES):
            leaves.append(leaf)
        else:
            leaves.append(_held(own, name, leaf))
    return BoundCall(tuple(names), tuple(tensors), tuple(leaves), spec, signature)


def _held(own: NamedTensors, name: str, value: Any) -> HeldObject:
    held = held_object(name, value, lambda: {id(tensor) for _, tensor in own()})
    if held is None:
        raise CaptureError(
            "E0211",
            f'argument "{name}" is of type "{type(value).__qualname__}", and holds no tensor',
            expected="tensors, numbers, strings, None, lists, tuples and dicts of them, or an object that has tensors",
            help="pass what the forward reads of it instead; of a cache, one that has its tensors before the call",
        )
    if names := {each for each, _ in own()} & held.tensors.keys():
        raise CaptureError(
            "E0212",
            f'the argument holds a tensor "{min(names)}", which is the name of a parameter or buffer of the model',
            help=f'rename the argument "{name}" of forward, or pass the model\'s own tensor in it',
        )
    return held


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, HeldObject) else leaf


def _leaf_name(signature: inspect.Signature, path: tuple[Any, ...]) -> str:
    """The argument's name with the keys of the leaf, such as "past[0]"."""
    name, keys = str(path[0].key), path[1:]
    parameter = signature.parameters[name]
    if parameter.kind is parameter.VAR_KEYWORD and keys:
        name, keys = str(keys[0].key), keys[1:]
    return name + pytree.keystr(keys)


def _spread(signature: inspect.Signature, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass arguments by keyword if the signature allows it, as decorators of a forward often look only there."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    kinds = {name: signature.parameters[name].kind for name in values}
    positional = any(kind is inspect.Parameter.VAR_POSITIONAL and values[name] for name, kind in kinds.items())
    for name, value in values.items():
        kind = kinds[name]
        if kind is inspect.Parameter.VAR_POSITIONAL:
            args.extend(value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            kwargs.update(value)
        elif kind is inspect.Parameter.POSITIONAL_ONLY or (
            positional and kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ):
            args.append(value)
        else:
            kwargs[name] = value
    return tuple(args), kwargs
