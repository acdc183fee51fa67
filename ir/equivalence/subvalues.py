"""Values that operations compute inside: those of an nn operation's formula, and of torch's decomposition of an op.

A pass that expands an operation computes such values on its own, so fault localisation takes them for right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_COMPOSITE = ("norm", "softmax", "loss", "mean", "var", "std", "attention", "logsumexp", "backward", "entropy")
"""What names of ops contain that a pass may write out."""

_DEPTH = 2
"""How often what a decomposition calls is decomposed."""


class Subvalues(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Inside, `keep` gets every floating or boolean tensor that an op of torch or its decomposition computes.

    Not uninitialized memory, nor a view of it: it may hold any earlier tensor, the wrong one too. What is written into
    it is kept as the result of the op that writes.
    """

    def __init__(self, keep: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keep = keep
        self._decompositions: Mapping[Any, Callable[..., Any]] = decomposition_table
        self._depth = 0
        self._unfilled = set[StorageWeakRef]()
        """Of tensors that were allocated without values; a reference keeps the address from being given again."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(results):
            if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.dtype is torch.bool):
                if _allocates(func):
                    self._unfilled.add(_storage(tensor))
                elif not (_is_view(func) and _storage(tensor) in self._unfilled):
                    self._keep(tensor)
        self._decompose(func, args, kwargs or {})
        return results

    def _decompose(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        decomposition = _MEANS.get(func) or self._decompositions.get(func)
        name = str(func).split(".")[1]
        if self._depth == _DEPTH or decomposition is None or not any(part in name for part in _COMPOSITE):
            return
        self._depth += 1
        try:
            with self:
                decomposition(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            pass  # a decomposition that does not take these arguments shows no values
        finally:
            self._depth -= 1


def _allocates(func: Any) -> bool:
    """Whether an op gives memory that nothing has filled."""
    return str(func).split(".")[1].startswith(("empty", "new_empty", "resize"))


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _is_view(func: Any) -> bool:
    """Whether an op gives the elements of an argument as they lie in memory."""
    infos = [result.alias_info for result in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _mean(x: Tensor, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    """A mean as a sum and a division."""
    total = x.sum() if dims is None else x.sum(dims, keepdim)
    return total / (x.numel() // max(1, total.numel()))


def _variance(x: Tensor, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """A variance and a mean as sums and divisions."""
    total = x.sum(dims, True)
    count = x.numel() // max(1, total.numel())
    mean = total / count
    squares = ((x - mean) * (x - mean)).sum(dims, keepdim)
    return squares / (count - (1 if correction is None else correction)), mean


_MEANS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mean.default: _mean,
    torch.ops.aten.mean.dim: _mean,
    torch.ops.aten.var_mean.correction: _variance,
}
"""Decompositions that torch does not have."""
