"""torch's own databases of ops and modules, each op and module under plans: right to 1e-9, or refused in words.

`pytest -m slow -s tests/databases` prints how many were equal and lists what was refused, as docs/refused.md does.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .against_eager import RAISED, Batch, Outcome, Verdict, outcome

PARTS = 8
LARGEST = 5000
"""Elements of an input."""
FEWEST = {"pipeline": 1 / 3}
"""The share of cases that must be equal, a half elsewhere: a pipeline refuses ops that mix rows of microbatches."""
SAMPLES = 3
"""Of each op or module, for a plan."""
PLANS: dict[str, tuple[str, Callable[[Tensor], bool]]] = {
    "data": ("mesh (dp=2)", lambda x: x.dim() > 0 and x.shape[0] % 2 == 0),
    "dim 1": ("mesh (cp=2)\nshard inputs dim 1 over cp", lambda x: x.dim() > 1 and x.shape[1] % 2 == 0),
    "two axes": (
        "mesh (dp=2, cp=2)\nshard inputs dim 1 over cp",
        lambda x: x.dim() > 1 and x.shape[0] % 2 == 0 and x.shape[1] % 2 == 0,
    ),
    "uneven": ('mesh (tp=3)\nshard "weight" dim 0 over tp', lambda x: x.dim() > 0 and x.shape[-1] % 3 != 0),
    "pipeline": (
        "mesh (pp=2)\npipeline over pp { microbatches 2  schedule gpipe }",
        lambda x: x.dim() > 0 and x.shape[0] % 2 == 0,
    ),
}
"""Name: the plan, and which inputs it can shard."""


class OpModel(nn.Module):
    """An op of its input times a parameter for each column; what is not the input are constants of the call."""

    def __init__(self, op: Callable[..., Any], shape: torch.Size, args: Any, kwargs: Any) -> None:
        super().__init__()
        self.op, self.args, self.kwargs = op, args, kwargs
        self.weight = nn.Parameter(0.75 + 0.5 * torch.rand(shape, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        return self.op(x * self.weight, *self.args, **self.kwargs)


class MeanSquares(nn.Module):
    """A loss of what a module gives, since a pipeline trains a loss; it scales rows before and the loss behind."""

    def __init__(self, module: nn.Module, row: torch.Size) -> None:
        super().__init__()
        self.module = module
        self.scale = nn.Parameter(0.75 + 0.5 * torch.rand(row, dtype=torch.float64))
        self.share = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        outputs = tree_leaves(self.module(x * self.scale, *rest))
        return sum(((self.share * y).square().mean() for y in outputs if y.is_floating_point()), x.new_zeros(()))


@dataclass(frozen=True)
class DatabaseCase:
    """A module of a database and an input of it."""

    name: str
    make: Callable[[], nn.Module]
    batch: Batch


def op_cases(part: int) -> Iterator[DatabaseCase]:
    """One part of the ops that take float64; those that give memory as it is have no result to compare."""
    from torch.testing._internal.common_methods_invocations import op_db

    infos = [info for info in op_db if torch.float64 in info.dtypes and "empty" not in info.name]
    for info in infos[part::PARTS]:
        name = f"{info.name}.{info.variant_test_name}" if info.variant_test_name else info.name
        try:
            samples = _quietly(lambda info=info: info.sample_inputs("cpu", torch.float64, requires_grad=False))
        except RAISED:
            continue
        for sample in samples:
            if isinstance(sample.input, Tensor) and _is_dense(sample.input) and "out" not in sample.kwargs:
                yield DatabaseCase(
                    f"{name} {tuple(sample.input.shape)}",
                    lambda info=info, s=sample: OpModel(info.op, s.input.shape[-1:], s.args, s.kwargs),
                    (sample.input.detach(),),
                )


def module_cases(part: int) -> Iterator[DatabaseCase]:
    """One part of the modules whose inputs are tensors."""
    from torch.testing._internal.common_modules import module_db

    for info in module_db[part::PARTS]:
        try:
            samples = _quietly(
                lambda info=info: info.module_inputs_func(
                    info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
                )
            )
        except RAISED:
            continue
        for sample in samples:
            given, made = sample.forward_input, sample.constructor_input
            if given is None or given.kwargs or not given.args or not all(isinstance(x, Tensor) for x in given.args):
                continue
            yield DatabaseCase(
                f"{info.name} {made.args} {made.kwargs} {[tuple(x.shape) for x in given.args]}"[:160],
                lambda info=info, made=made: info.module_cls(*made.args, **made.kwargs).double(),
                tuple(x.detach() for x in given.args),
            )


def _quietly(samples: Callable[[], Iterable[Any]]) -> list[Any]:
    """The samples of a database, whose making may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(samples())


def _is_dense(x: Tensor) -> bool:
    return x.layout is torch.strided


def judged(cases: Iterator[DatabaseCase], plan: str) -> list[Outcome]:
    """What becomes of a few cases of each op or module; each on its own input and on another of the same shape."""
    text, fits = PLANS[plan]
    wrap = _with_loss if plan == "pipeline" else lambda case: case.make
    kept: dict[str, list[DatabaseCase]] = {}
    for case in cases:
        if all(0 < x.numel() <= LARGEST for x in case.batch) and all(fits(x) for x in case.batch):
            kept.setdefault(case.name.split(" ")[0], []).append(case)
    outcomes = []
    for name, all_of_one in kept.items():
        for case in random.Random(name).sample(all_of_one, min(SAMPLES, len(all_of_one))):
            torch.manual_seed(0)
            outcomes.append(outcome(case.name, _seeded(wrap(case)), [case.batch, _another(case.batch)], text))
    return outcomes


def _with_loss(case: DatabaseCase) -> Callable[[], nn.Module]:
    return lambda: MeanSquares(case.make(), case.batch[0].shape[1:])


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def seeded() -> nn.Module:
        torch.manual_seed(0)
        return make()

    return seeded


def _another(batch: Batch) -> Batch:
    """A batch of the same shapes in which the rows come in another order."""
    return tuple(x.flip(0) if x.dim() else x for x in batch)


def report(outcomes: list[Outcome], title: str) -> None:
    """Print how many of each verdict there are, and what was refused."""
    counts = Counter(each.verdict for each in outcomes)
    print(f"\n{title}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}")
    for each in outcomes:
        if each.verdict not in (Verdict.EQUAL, Verdict.DRAWS, Verdict.ILLEGAL):
            print(each)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("part", range(PARTS))
def test_ops_of_torch_are_right_or_refused(part: int, plan: str) -> None:
    pytest.importorskip("expecttest", reason="torch's databases import it")
    outcomes = judged(op_cases(part), plan)
    report(outcomes, f"ops, part {part}, {plan}")
    assert sum(each.verdict is Verdict.EQUAL for each in outcomes) > len(outcomes) * FEWEST.get(plan, 1 / 2)
    assert not [str(each) for each in outcomes if each.is_fault]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("plan", ["data", "two axes", "pipeline"])
@pytest.mark.parametrize("part", range(PARTS))
def test_modules_of_torch_are_right_or_refused(part: int, plan: str) -> None:
    pytest.importorskip("expecttest", reason="torch's databases import it")
    outcomes = judged(module_cases(part), plan)
    report(outcomes, f"modules, part {part}, {plan}")
    assert not [str(each) for each in outcomes if each.is_fault]
