"""The structure of what a forward returned: its containers, its plain values, and where its tensors are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

_SHOWN = 200
"""Characters of a structure in a message."""


@dataclass(frozen=True)
class Structure:
    """A result without the values of its tensors."""

    spec: pytree.TreeSpec
    leaves: tuple[tuple[str, str], ...]
    """By path: a plain value with its type, or the number of a tensor, which may be at several places."""

    @classmethod
    def of(cls, result: Any) -> Structure:
        """That of what a forward returned."""
        paths, spec = pytree.tree_flatten_with_path(result)
        numbers: dict[int, int] = {}
        leaves = []
        for path, leaf in paths:
            is_tensor = isinstance(leaf, Tensor)
            text = f"tensor {numbers.setdefault(id(leaf), len(numbers))}" if is_tensor else _plain(leaf)
            leaves.append((pytree.keystr(path), text))
        return cls(spec, tuple(leaves))

    def difference(self, program: Structure) -> str:
        """How that of the program differs from this one of eager mode; empty where it does not."""
        if self.spec != program.spec:
            return f"eager mode returns {str(self.spec)[:_SHOWN]}, and the program {str(program.spec)[:_SHOWN]}"
        for (path, own), (_, other) in zip(self.leaves, program.leaves, strict=True):
            if own != other:
                place = f" at {path}" if path else ""
                return f"eager mode returns {own[:_SHOWN]}{place}, and the program {other[:_SHOWN]}"
        return ""


def _plain(value: Any) -> str:
    """A plain value with its type, or the type of an object: its `repr` may have its address."""
    has_own = any("__repr__" in vars(cls) for cls in type(value).__mro__[:-1])
    return f"{type(value).__name__} {value!r}" if has_own else type(value).__name__
