"""DTensor's private tables: they are where Stretto reads them, and every strategy taken from them is valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
import torch
from stretto.ops.overloads import overload
from stretto.passes.sharding.rules.call import bind
from stretto.passes.sharding.rules.lookup import dtensor as dtensor_rules
from torch import Tensor
from torch.distributed.tensor import DTensor

from .joint_graphs import Recorded, to_metas
from .ranks import run
from .test_rules_hold import failures

Maker = Callable[..., Tensor]
SHAPES = ((3, 5), (5,), (3, 1))


def test_the_two_tables_are_there_and_large() -> None:
    propagator = DTensor._op_dispatcher.sharding_propagator
    assert len(propagator.op_single_dim_strategy_funcs) > 900
    assert len(propagator.op_strategy_funcs) > 100


@pytest.mark.parametrize(
    ("op", "single"), [("aten.mul.Tensor", True), ("aten.mm.default", True), ("aten.dot.default", False)]
)
def test_an_op_is_in_the_expected_table(op: str, single: bool) -> None:
    assert (overload(op) in DTensor._op_dispatcher.sharding_propagator.op_single_dim_strategy_funcs) is single


def test_strategies_that_expect_placed_operands_are_read_without_a_process_group() -> None:
    assert not torch.distributed.is_initialized()
    meta = to_metas(torch.zeros(6))
    call = bind("aten.dot.default", (meta, meta), {}, (to_metas(torch.zeros(())),))
    assert call is not None
    assert len(dtensor_rules.dtensor_strategies(call) or ()) > 1


def uniform(*shape: int) -> Tensor:
    """Numbers inside the domain of nearly every function."""
    return torch.rand(*shape, dtype=torch.float64) * 0.8 + 0.1


def small_ints(*shape: int) -> Tensor:
    """1 and 2."""
    return torch.randint(1, 3, shape)


def truths(*shape: int) -> Tensor:
    """Random bools."""
    return torch.rand(*shape) > 0.5


def pointwise_ops() -> Iterator[torch._ops.OpOverload]:
    """The functional pointwise ops that DTensor has rules for."""
    for op in DTensor._op_dispatcher.sharding_propagator.op_single_dim_strategy_funcs:
        if torch.Tag.pointwise in op.tags and op.namespace == "aten" and not op._schema.is_mutable:
            yield op


def recorded(op: torch._ops.OpOverload, maker: Maker) -> Recorded | None:
    """A call with operands of three shapes that broadcast; None where the op does not take them."""
    shapes, args = cycle(SHAPES), []
    for argument in op._schema.arguments:
        if argument.kwarg_only or argument.has_default_value():
            continue
        kind = str(argument.type)
        if kind not in ("Tensor", "number", "float", "int", "bool", "Scalar"):
            return None
        args.append(maker(*next(shapes)) if kind == "Tensor" else 1)
    try:
        outputs = run(str(op), tuple(args), {})
    except (RuntimeError, IndexError, NotImplementedError):
        return None
    if any(out is None or out.dtype == torch.float32 for out in outputs):
        return None
    return Recorded(str(op), tuple(args), {}, outputs)


@pytest.mark.parametrize("maker", [uniform, small_ints, truths])
def test_every_strategy_of_every_pointwise_op_is_valid(maker: Maker) -> None:
    torch.manual_seed(3)
    calls = [call for op in pointwise_ops() if (call := recorded(op, maker)) is not None]
    assert len(calls) > 15
    wrong = [text for call in calls for text in failures(call)]
    assert not wrong, "\n\n".join(wrong)
