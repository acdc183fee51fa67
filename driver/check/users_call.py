"""Call the eager model of a check as its user does, without capture's binding of arguments.

Capture binds the arguments of a call to names and numbers, and picks the loss of what the forward returns. A fault of
either would be on both sides of a check, so this module shares no code with it: `model(**arguments)` is called, each
random value stands at the path of its tensor in `arguments`, and the path is its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from ...diagnostics import StrettoError


@dataclass(frozen=True)
class UsersCall:
    """`model(**arguments)`."""

    arguments: Mapping[str, Any]
    loss_only: bool
    """Keep of the result the loss alone."""
    compute: torch.dtype | None = None
    """The dtype that the plan's precision casts parameters and floating inputs to."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the arguments by name: "x", or "past[0]" inside an argument."""
        leaves = pytree.tree_flatten_with_path(dict(self.arguments))[0]
        return {_name(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}

    def held(self, name: str) -> Tensor | None:
        """The tensor at a dotted path in an object among the arguments, such as "cache.layers.0.keys"."""
        value: Any = self.arguments
        for key in name.split("."):
            if isinstance(value, Mapping):
                value = next((item for each, item in value.items() if str(each) == key), None)
            elif isinstance(value, list | tuple):
                value = value[int(key)] if key.isdecimal() and int(key) < len(value) else None
            else:
                value = getattr(value, key, None)
        return value if isinstance(value, Tensor) else None

    def refuse_other_inputs(self, names: Iterable[str]) -> None:
        """Raise StrettoError E0666 unless these names of a program's inputs are those of the call's tensors."""
        called, taken = set(self.tensors), set(names)
        if called == taken:
            return
        raise StrettoError(
            "E0666",
            f"the program takes the inputs {_listed(taken)}, and the target's call has {_listed(called)}",
            help="compile this target again; if it stays, capture loses an input: please report it with the model",
        )

    def results(
        self, model: nn.Module, values: Mapping[str, Tensor], alter: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """The tensors of the result, each once, in their order. See `result`."""
        return tensors_of(self.result(model, values, alter))

    def result(self, model: nn.Module, values: Mapping[str, Tensor], alter: Callable[[Tensor], Tensor]) -> Any:
        """What the model returns; of the arguments' tensors, those in `values` are replaced.

        `alter` is applied to every tensor of the arguments.
        """

        def value(path: tuple[Any, ...], leaf: Any) -> Any:
            return self._cast(alter(values.get(_name(path), leaf))) if isinstance(leaf, Tensor) else leaf

        arguments = pytree.tree_map_with_path(value, dict(self.arguments))
        if "use_cache" in inspect.signature(model.forward).parameters:
            arguments.setdefault("use_cache", False)  # a cache that grows with each call is not part of a step
        if self.compute is None:
            result = model(**arguments)
        else:
            result = torch.func.functional_call(model, _casts(model, self.compute), (), arguments)
        return _loss(result) if self.loss_only else result

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.compute) if self.compute is not None and tensor.is_floating_point() else tensor


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of what a forward returned, each once, in their order."""
    return list({id(leaf): leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)}.values())


def _name(path: Sequence[Any]) -> str:
    return str(path[0].key) + pytree.keystr(tuple(path[1:]))


def _casts(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The floating parameters in this dtype, but for those of batch norms; a tied one once."""
    kept = {id(p) for module in model.modules() if isinstance(module, _BatchNorm) for p in module.parameters()}
    named = model.named_parameters()
    return {name: p.to(dtype) for name, p in named if p.is_floating_point() and id(p) not in kept}


def _loss(result: Any) -> Any:
    """The result's "loss", or its one floating scalar that requires a gradient."""
    loss = result.get("loss") if isinstance(result, dict) else getattr(result, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    scalars = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and _may_be_loss(leaf)]
    return scalars[0] if len(scalars) == 1 else result


def _may_be_loss(tensor: Tensor) -> bool:
    return tensor.dim() == 0 and tensor.is_floating_point() and tensor.requires_grad


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names)) or "no tensor"
