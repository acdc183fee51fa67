"""A module under a plan against the same module in eager mode: values, gradients of inputs and of parameters.

Gradients accumulate over the batches, and every output has a random tangent, so that a scale that is lost shows.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import stretto
import torch
from stretto.diagnostics import StrettoError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOLERANCE = 1e-9
_SMALL = 1e-3
"""A tensor whose values are all smaller is compared as if its largest were this: what is left is rounding."""
_MOST_ROUNDING = 16.0
"""The order of sums may move a result by this many times what moving all inputs in their last places does."""
_NO_ROUNDING = 1e-5
"""A larger relative error is none of rounding, however much a moved input moves the result: ties may break."""
RAISED = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError, AssertionError)
"""What torch raises for a call that it does not take; from a compiled module, a crash."""
Batch = tuple[Tensor, ...]


class Verdict(StrEnum):
    """What became of a case."""

    EQUAL = "equal"
    REFUSED = "refused"
    ILLEGAL = "illegal in eager mode"
    DRAWS = "draws numbers of its own"
    WRONG = "wrong"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Outcome:
    """A case and what became of it."""

    name: str
    plan: str
    verdict: Verdict
    detail: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether it must not be."""
        return self.verdict in (Verdict.WRONG, Verdict.CRASHED)

    def __str__(self) -> str:
        return f"{self.verdict}: {self.name} under {self.plan!r}: {self.detail}"


Results = Mapping[str, Tensor | None]


class _Watch(TorchDispatchMode):
    """What goes on inside: whether random numbers are drawn, and the coarsest dtype that any op computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = False
        self.epsilon = 0.0

    def __enter__(self) -> _Watch:
        self._state = torch.get_rng_state()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.draws |= not torch.equal(self._state, torch.get_rng_state())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.is_floating_point():
                self.epsilon = max(self.epsilon, torch.finfo(result.dtype).eps)
        return results

    @property
    def tolerance(self) -> float:
        """The relative difference that the order of sums may make."""
        return max(TOLERANCE, 64 * self.epsilon)


def outcome(name: str, make: Callable[[], nn.Module], batches: Sequence[Batch], plan: str) -> Outcome:
    """Run the module that `make` gives in eager mode and under the plan, on each batch in turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eager = make()
        planned, untouched, watch = copy.deepcopy(eager), copy.deepcopy(eager), _Watch()
        try:
            expected = list(_steps(eager, eager, batches, watch))
        except RAISED as error:
            return Outcome(name, plan, Verdict.ILLEGAL, repr(error)[:120])
        if watch.draws:
            return Outcome(name, plan, Verdict.DRAWS)
        try:
            compiled = stretto.compile(planned, plan=plan)
            actual = list(_steps(compiled, planned, batches))
        except StrettoError as error:
            return Outcome(name, plan, Verdict.REFUSED, f"{error.code} {error.message}"[:160])
        except RAISED as error:
            return Outcome(name, plan, Verdict.CRASHED, f"{type(error).__name__}: {error}"[:300])
        differences = [
            d for one, other in zip(expected, actual, strict=True) for d in _differences(one, other, watch.tolerance)
        ]
        if differences:
            noise = _rounding(untouched, batches, expected)
            differences = [d for d in differences if not _is_rounding(d, noise, expected, actual)]
    return Outcome(name, plan, Verdict.WRONG if differences else Verdict.EQUAL, "; ".join(differences)[:300])


def _steps(
    module: nn.Module,
    owner: nn.Module,
    batches: Sequence[Batch],
    around: AbstractContextManager[object] | None = None,
) -> Iterator[Results]:
    """The results of each batch: outputs, gradients of inputs, and the gradients so far of the owner's parameters.

    `around` is entered for each forward.
    """
    for number, batch in enumerate(batches):
        inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in batch]
        with around or nullcontext():
            outputs = [value for value in tree_leaves(module(*inputs)) if isinstance(value, Tensor)]
        loss = _with_random_tangents(outputs, number)
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        results: dict[str, Tensor | None] = {f"output {i}": value.detach() for i, value in enumerate(outputs)}
        results |= {f"gradient of input {i}": value.grad for i, value in enumerate(inputs)}
        for name, parameter in owner.named_parameters():
            results[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.detach().clone()
        yield {f"batch {number}, {name}": value for name, value in results.items()}


def _rounding(module: nn.Module, batches: Sequence[Batch], expected: Sequence[Results]) -> dict[str, float]:
    """By result, how much eager mode moves it where parameters and inputs are moved in their last places."""
    moves: dict[str, float] = {}
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.copy_(_moved(parameter, random))
        near = [[_moved(x, random) for x in batch] for batch in batches]
        for one, other in zip(expected, _steps(moved, moved, near), strict=True):
            for name, value in one.items():
                if value is not None and other[name] is not None and value.is_floating_point():
                    change = float((value - other[name]).abs().nan_to_num().max()) if value.numel() else 0.0
                    moves[name] = max(moves.get(name, 0.0), change)
    return moves


def _moved(x: Tensor, random: torch.Generator) -> Tensor:
    """A tensor of floats moved by at most its epsilon, relatively."""
    if not x.is_floating_point():
        return x
    by = torch.rand(x.shape, generator=random, dtype=torch.float64) * 2 - 1
    return x * (1 + by * torch.finfo(x.dtype).eps).to(x.dtype)


def _is_rounding(
    difference: str, noise: dict[str, float], expected: Sequence[Results], actual: Sequence[Results]
) -> bool:
    """Whether rounding alone, as far as eager mode shows it, makes a difference."""
    name = difference.rpartition(": ")[0]
    for one, other in zip(expected, actual, strict=True):
        value, found = one.get(name), other.get(name)
        if value is not None and found is not None and value.shape == found.shape and name in noise:
            error, largest = float((value - found).abs().nan_to_num().max()), float(value.abs().nan_to_num().max())
            return error <= _MOST_ROUNDING * noise[name] and error <= _NO_ROUNDING * max(largest, _SMALL)
    return False


def _with_random_tangents(outputs: Sequence[Tensor], seed: int) -> Tensor | None:
    random = torch.Generator().manual_seed(seed)
    total = None
    for output in outputs:
        if output.requires_grad:
            tangent = torch.randn(output.shape, generator=random, dtype=torch.float64).to(output.dtype)
            term = (output * tangent).sum()
            total = term if total is None else total + term
    return total


def _differences(expected: Results, actual: Results, tolerance: float) -> list[str]:
    if list(expected) != list(actual):
        return [f"results {list(expected)}, not {list(actual)}"]
    return [
        f"{name}: {problem}"
        for name, value in expected.items()
        if (problem := _difference(value, actual[name], tolerance))
    ]


def _difference(expected: Tensor | None, actual: Tensor | None, tolerance: float) -> str:
    if expected is None or actual is None:
        there = expected if expected is not None else actual
        return "one is None" if there is not None and there.any() else ""
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        return f"{expected.dtype}{tuple(expected.shape)}, not {actual.dtype}{tuple(actual.shape)}"
    if not expected.is_floating_point():
        return "" if torch.equal(expected, actual) else "integers differ"
    finite = expected[expected.isfinite()]
    largest = max(float(finite.abs().max()) if finite.numel() else 1.0, _SMALL)
    if torch.allclose(expected, actual, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
        return ""
    return f"off by {float((expected - actual).abs().nan_to_num().max()):.1e} of {largest:.1e}"
