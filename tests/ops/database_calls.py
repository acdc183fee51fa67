"""Calls that torch's own databases of ops and modules lead to, forward and backward, as its dispatcher sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from stretto.ops.table import op_table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .layouts import FAILURES, OpCall

_CALLS_OF_ONE_OP = 3
_SAMPLES = 6
_LARGEST = 20_000
"""Elements of an operand."""
Judge = Callable[[OpCall], None]


class _Recorder(TorchDispatchMode):
    """Gives the calls of ops of the table to `judge`, as they are made; a few of each op."""

    def __init__(self, judge: Judge, seen: Counter[str]) -> None:
        super().__init__()
        self._judge, self._seen = judge, seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f"{func.namespace}.{func._schema.name.split('::')[1]}.{func._overloadname}"
        entry = op_table().get(name)
        if entry is not None and not entry.only_in_references and self._seen[name] < _CALLS_OF_ONE_OP:
            tensors = [value for value in tree_leaves([args, kwargs]) if isinstance(value, Tensor)]
            if tensors and all(_is_plain(tensor) for tensor in tensors):
                self._seen[name] += 1
                self._judge(OpCall(name, list(args), dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def walk_databases(judge: Judge) -> frozenset[str]:
    """Call `judge` with calls of all ops that the databases lead to; returns the ops."""
    seen: Counter[str] = Counter()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for run in _runs():
            try:
                with _Recorder(judge, seen):
                    _backward(run())
            except FAILURES:
                continue
    return frozenset(seen)


def _runs() -> Iterator[Callable[[], Any]]:
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    dtype = torch.float64
    for info in op_db:
        if dtype not in info.dtypes:
            continue
        for sample in _samples(
            lambda info=info: info.sample_inputs("cpu", dtype, requires_grad=info.supports_autograd)
        ):
            if "out" not in sample.kwargs:
                yield lambda info=info, sample=sample: info.op(sample.input, *sample.args, **sample.kwargs)
    for info in module_db:
        for sample in _samples(
            lambda info=info: info.module_inputs_func(
                info, device="cpu", dtype=dtype, requires_grad=True, training=True
            )
        ):
            made, given = sample.constructor_input, sample.forward_input
            yield lambda info=info, made=made, given=given: info.module_cls(*made.args, **made.kwargs).to(dtype)(
                *given.args, **given.kwargs
            )


def _samples(make: Callable[[], Any]) -> list[Any]:
    try:
        return list(make())[:_SAMPLES]
    except FAILURES:
        return []


def _backward(results: Any) -> None:
    total: Any = 0
    for result in tree_leaves(results):
        if isinstance(result, Tensor) and result.requires_grad:
            weighted = (result * torch.randn(result.shape, dtype=result.dtype)).sum()
            total = total + (weighted.real if weighted.is_complex() else weighted)
    if isinstance(total, Tensor) and total.requires_grad:
        total.backward()


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel() < _LARGEST
