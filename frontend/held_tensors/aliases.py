"""Parameters and buffers that the forward reaches through other objects than its modules, such as a cache's layers.

Export gives the modules tensors of its own for the time of the trace. Lists and other objects still hold the model's,
of which torch would make constants. So each op gets the module's tensor in their place, wherever the forward found it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class ModelTensors:
    """The parameters and buffers of a model before its trace, by identity."""

    def __init__(self, model: nn.Module) -> None:
        self._owners = [
            (tensors, name, tensor)
            for module in model.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    def replacements(self) -> dict[int, Tensor]:
        """By id of each that the modules do not hold now: the tensor that they hold in its place."""
        found = {}
        for tensors, name, tensor in self._owners:
            now = tensors.get(name)
            if now is not None and now is not tensor:
                found[id(tensor)] = now
        return found


class AliasesResolved(TorchFunctionMode):
    """Inside, ops get the traced tensor for one of the model's, and `resolve` gives it for a result."""

    def __init__(self, replacements: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._replacements = replacements

    def resolve(self, value: Any) -> Any:
        """The value, or the traced tensor in its place."""
        return self._replacements.get(id(value), value)

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function on the traced tensors."""
        leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs or {})))
        if any(id(leaf) in self._replacements for leaf in leaves):
            args, kwargs = pytree.tree_unflatten([self.resolve(leaf) for leaf in leaves], spec)
        return function(*args, **(kwargs or {}))
