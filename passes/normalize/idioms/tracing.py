"""Trace a torch function to a list of aten operations: it runs on meta tensors, and every call is recorded.

Calls are recorded below autograd, so that a backward inside the function is recorded too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ....ir.dialects.schemas import Kind, definitions
from ....ir.types import TensorType


@dataclass(frozen=True)
class Traced:
    """A tensor of the trace, by number: inputs first, then the results of the steps in order."""

    number: int


@dataclass(frozen=True)
class Step:
    """One call: an operation's name, its arguments (tensors as `Traced`), and its results' numbers and types."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    types: tuple[TensorType | None, ...]
    """None for a result that the operation does not compute."""


@dataclass(frozen=True)
class Trace:
    """The steps of a function, and the tensors that it returned (None for a None)."""

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[int | None, ...]


def meta_tensor(type_: TensorType) -> torch.Tensor:
    """A tensor without data of a type's shape and dtype."""
    return torch.empty(type_.shape, dtype=type_.dtype, device="meta")


def trace(
    function: Callable[[list[torch.Tensor]], Sequence[torch.Tensor | None]], types: Sequence[TensorType]
) -> Trace:
    """Run `function` on meta tensors of `types` and record its operations and results."""
    inputs = [meta_tensor(t) for t in types]
    recorder = _Recorder(inputs)
    with recorder:
        outputs = function(inputs)
    return Trace(len(inputs), tuple(recorder.steps), tuple(None if o is None else recorder.number(o) for o in outputs))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []
        for tensor in inputs:
            self._add(tensor)

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a recorded tensor."""
        return self._numbers[id(tensor)]

    def _add(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        self._numbers[id(tensor)] = len(self._alive) - 1
        return len(self._alive) - 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        returned = func(*args, **kwargs)
        results = returned if isinstance(returned, (tuple, list)) else (returned,)
        name = _functional(str(func), args)
        kept_kwargs = {k: self._argument(v) for k, v in kwargs.items() if not _is_ignored(name, k)}
        traced = tuple(self._argument(a) for a in args)
        numbers = tuple(self._add(r) if r is not None else -1 for r in results)
        self.steps.append(Step(name, traced, kept_kwargs, numbers, tuple(_type(r) for r in results)))
        return returned

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return Traced(self._numbers[id(argument)])
        if isinstance(argument, (tuple, list)):
            return tuple(self._argument(a) for a in argument)
        return argument


def _functional(name: str, args: Sequence[Any]) -> str:
    """Stretto's name for a call: in-place sums as sums, views as reshapes, numbers as operands as scalars."""
    name = name.replace("add_.", "add.")
    if name in ("aten.view.default", "aten._unsafe_view.default"):
        return "aten.reshape.default"
    if name.endswith(".Tensor") and len(args) > 1 and isinstance(args[1], (bool, int, float)):
        scalar = name.replace(".Tensor", ".Scalar")
        return scalar if scalar in definitions() else name
    return name


def _is_ignored(name: str, argument: str) -> bool:
    return any(a.name == argument and a.kind is Kind.IGNORED for a in definitions()[name].arguments)


def _type(result: torch.Tensor | None) -> TensorType | None:
    return None if result is None else TensorType(result.dtype, tuple(result.shape))
