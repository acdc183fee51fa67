"""Small training steps as modules: torch functions with their gradients, without a model and without capture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from stretto.ir.bindings import mlir
from stretto.ir.dialects.schemas import definitions
from stretto.ir.locations import Origin, to_location
from stretto.ir.module import Module, build_function, entry, finish_function
from stretto.ir.operations import Call, build, read
from stretto.ir.types import TensorType, absent, to_mlir
from stretto.passes.base import RemarkKind
from stretto.passes.normalize.idioms.tracing import Traced, trace
from stretto.passes.normalize.lower_idioms import LowerIdioms
from stretto.passes.normalize.raise_idioms import RaiseIdioms
from torch import Tensor

from ....executing import execute

Function = Callable[..., Tensor]


def step(function: Function, inputs: Sequence[Tensor], trained: Sequence[int] = ()) -> Module:
    """`main`: the inputs and the gradient of the function's result, to the result and the trained inputs' gradients."""

    def run(tensors: list[Tensor]) -> list[Tensor | None]:
        *given, grad = tensors
        leaves = [t.detach().requires_grad_() if i in trained else t for i, t in enumerate(given)]
        result = function(*leaves)
        return [result, *(torch.autograd.grad(result, [leaves[i] for i in trained], grad) if trained else ())]

    return _module(run, [*(_type(t) for t in inputs), _type(function(*inputs))])


def _type(tensor: Tensor) -> TensorType:
    return TensorType(tensor.dtype, tuple(tensor.shape))


def _module(run: Callable[[list[Tensor]], list[Tensor | None]], types: Sequence[TensorType]) -> Module:
    traced = trace(run, types)
    module = Module.empty()
    main = build_function(module, "main", [to_mlir(t) for t in types])
    values: dict[int, Any] = dict(enumerate(entry(main).arguments))

    def fill(argument: Any) -> Any:
        if isinstance(argument, Traced):
            return values[argument.number]
        return [fill(a) for a in argument] if isinstance(argument, tuple) else argument

    with mlir.InsertionPoint(entry(main)):
        for number, call in enumerate(traced.steps):
            made = [absent() if t is None else to_mlir(t) for t in call.types]
            is_list = definitions()[call.name].results == ("Tensor[]",)
            filled = Call(call.name, tuple(fill(a) for a in call.args), {k: fill(v) for k, v in call.kwargs.items()})
            results = build(filled, [made] if is_list else made, to_location(Origin("block", "model.py", number + 1)))
            values.update(zip(call.results, results[0] if is_list else results, strict=True))
    finish_function(main, [values[n] for n in traced.outputs if n is not None])
    return module


def names(module: Module) -> list[str]:
    """The names of the module's operations in order."""
    found: list[str] = []
    for function in module.functions().values():
        calls = (read(op) for op in entry(function).operations)
        found.extend(call.name for call in calls if call is not None)
    return found


def raised(module: Module) -> list[str]:
    """The nn operations that raising puts in, in order."""
    RaiseIdioms().run(module)
    module.verify()
    return [name for name in names(module) if name.startswith("nn.")]


def misses(module: Module) -> list[str]:
    """What raising says it left, after checking that it left it."""
    before = str(module)
    report = RaiseIdioms().run(module)
    assert report.rewritten == 0
    assert str(module) == before
    return [r.message for r in report.remarks if r.kind is RemarkKind.MISSED]


def assert_kept(module: Module, inputs: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    """Raising, and lowering after it, keep every result of `main` (relative to its largest element)."""
    expected = execute(module, inputs)
    for rewrite in (RaiseIdioms(), LowerIdioms()):
        rewrite.run(module)
        module.verify()
        assert_same(execute(module, inputs), expected, tolerance)
    assert not any(name.startswith("nn.") for name in names(module))


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    """Each tensor is the other, relative to its largest element."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * _largest(other), equal_nan=True)


def _largest(tensor: Tensor) -> float:
    return float(tensor.nan_to_num().abs().max())
