"""Every strategy of every call: shard the operands by it, run each rank alone, reassemble the results, compare."""

from __future__ import annotations

import pytest
import torch
from stretto.passes.sharding.rules import Lowering, OpStrategies, Strategy, strategies_for
from torch import Tensor

from .cases import CASES
from .joint_graphs import MODELS, Recorded, calls, to_metas
from .ranks import gathered, run, run_on_ranks, tensors_of, with_tensors

_COMMUNICATES = (Lowering.STATE, Lowering.STATISTICS, Lowering.HALO, Lowering.EXCHANGE)


def strategies_of(call: Recorded) -> OpStrategies:
    """The strategies of a recorded call."""
    return strategies_for(call.op, to_metas(call.args), to_metas(call.kwargs), to_metas(call.outputs))


def failures(call: Recorded) -> list[str]:
    """The strategies of the call whose result differs from that of one device, with the difference.

    What an op communicates inside is not computed here: `../../partition/test_batch_norm.py` runs statistics,
    `../../partition/images/test_halos.py` halos, and `tests/end_to_end/test_experts.py` exchanges of rows.
    """
    messages = []
    for strategy in strategies_of(call).strategies:
        for parts in (2, 3):
            if strategy.legal(parts) and strategy.lowering not in _COMMUNICATES:
                try:
                    _check(call, strategy, parts)
                except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                    messages.append(f"{call} on {parts}: {strategy}\n{error}")
    return messages


def _check(call: Recorded, strategy: Strategy, parts: int) -> None:
    ranks = run_on_ranks(call, strategy, parts)
    for index, (expected, placement) in enumerate(zip(call.outputs, strategy.outputs, strict=True)):
        if expected is None:
            assert all(results[index] is None for results in ranks)
            continue
        rank_results = [_tensor(results[index]) for results in ranks]
        tolerance = 1e-12 * max(1.0, *(largest(t) for t in (expected, *rank_results)))
        for actual in gathered(rank_results, placement, expected.shape):
            torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, equal_nan=True)


def largest(value: Tensor) -> float:
    """The largest finite magnitude; the terms of a partial sum may be far larger than the sum."""
    return float(value.double().abs().nan_to_num(0, 0, 0).max()) if value.numel() else 0.0


def _tensor(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def tamed(call: Recorded) -> Recorded:
    """The call with finite operands, and its results for them."""
    tensors = [t.contiguous() for t in tensors_of([call.args, call.kwargs])]
    finite = [t.nan_to_num(0.5, 3.0, -3.0) if t.is_floating_point() else t for t in tensors]
    args, kwargs = with_tensors([call.args, call.kwargs], iter(finite))
    return Recorded(call.op, args, kwargs, run(call.op, args, kwargs))


@pytest.mark.parametrize("model", MODELS)
def test_every_strategy_of_every_call_of_a_model_gives_the_result_of_one_device(model: str) -> None:
    torch.manual_seed(1)
    recorded = [tamed(call) for call in calls(model)]
    wrong = [text for call in recorded for text in failures(call)]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("model", MODELS)
def test_every_op_of_a_model_is_known(model: str) -> None:
    assert not {call.op for call in calls(model) if not strategies_of(call).known}


@pytest.mark.parametrize("name", CASES)
def test_every_strategy_of_a_case_gives_the_result_of_one_device(name: str) -> None:
    torch.manual_seed(2)
    op, args, kwargs = CASES[name]()
    call = Recorded(op, args, kwargs, run(op, args, kwargs))
    assert strategies_of(call).known
    assert not (wrong := failures(call)), "\n\n".join(wrong)
