"""A call of a model: its tensors with names, and its other arguments as constants."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..captured import CaptureError
from ..metadata import forward_span

PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
"""Types of arguments and results that become constants of the captured graph."""


@dataclass(frozen=True)
class TensorArgument:
    """Stands for input tensor `index` in the arguments."""

    index: int


@dataclass(frozen=True)
class BoundCall:
    """The arguments of a call: named tensors, everything else constant.

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
        leaves = [tensors[leaf.index] if isinstance(leaf, TensorArgument) else leaf for leaf in self.leaves]
        return _spread(self.signature, pytree.tree_unflatten(leaves, self.spec))


def bind_call(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundCall:
    """Bind the arguments to the names of `model.forward`.

    `use_cache` defaults to False, as a cache that grows with each call is not part of a step. Errors: E0210 for a
    missing or unexpected argument, E0211 for an argument that is neither a tensor nor a plain value nor a container of
    those.
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
    return _flatten(signature, arguments)


def _unknown(signature: inspect.Signature, kwargs: Mapping[str, Any]) -> str:
    """The help about keywords that the signature lacks."""
    unknown = [f'"{name}"' for name in kwargs if name not in signature.parameters]
    return f"it has no argument {', '.join(unknown)}; " if unknown else ""


def _flatten(signature: inspect.Signature, arguments: dict[str, Any]) -> BoundCall:
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
            raise CaptureError(
                "E0211",
                f'argument "{name}" is of type "{type(leaf).__qualname__}"',
                expected="tensors, numbers, strings, None, or lists, tuples and dicts of them",
                help="pass the tensors that it holds instead",
            )
    return BoundCall(tuple(names), tuple(tensors), tuple(leaves), spec, signature)


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
