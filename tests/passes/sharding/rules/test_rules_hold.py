"""Every row of every call: cut the operands by the row, run each rank alone, put the results together, compare."""

from __future__ import annotations

import pytest
import torch
from stretto.passes.sharding.rules import Lowering, Row, Rules, rows
from torch import Tensor

from .cases import CASES
from .joint_graphs import MODELS, Recorded, calls, to_metas
from .ranks import gathered, run, run_on_ranks, tensors_of, with_tensors


def rules_of(call: Recorded) -> Rules:
    """The rules of a recorded call."""
    return rows(call.op, to_metas(call.args), to_metas(call.kwargs), to_metas(call.outputs))


def failures(call: Recorded) -> list[str]:
    """The rows of the call that give something else than the call on one device, with what they give.

    Statistics that are reduced inside an op are not computed here: `../spmd/test_batch_norm.py` runs what is.
    """
    found = []
    for row in rules_of(call).rows:
        for parts in (2, 3):
            if row.legal(parts) and row.lowering is not Lowering.STATISTICS:
                try:
                    _check(call, row, parts)
                except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                    found.append(f"{call} on {parts}: {row}\n{error}")
    return found


def _check(call: Recorded, row: Row, parts: int) -> None:
    ranks = run_on_ranks(call, row, parts)
    for index, (want, placement) in enumerate(zip(call.outputs, row.outputs, strict=True)):
        if want is None:
            assert all(results[index] is None for results in ranks)
            continue
        held = [_tensor(results[index]) for results in ranks]
        tolerance = 1e-12 * max(1.0, *(largest(t) for t in (want, *held)))
        for got in gathered(held, placement, want.shape):
            torch.testing.assert_close(got, want, rtol=0, atol=tolerance, equal_nan=True)


def largest(value: Tensor) -> float:
    """The largest finite magnitude; partial addends may be far larger than their sum."""
    return float(value.double().abs().nan_to_num(0, 0, 0).max()) if value.numel() else 0.0


def _tensor(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def tamed(call: Recorded) -> Recorded:
    """The call with finite operands, and what it gives for them."""
    given = [t.contiguous() for t in tensors_of([call.args, call.kwargs])]
    finite = [t.nan_to_num(0.5, 3.0, -3.0) if t.is_floating_point() else t for t in given]
    args, kwargs = with_tensors([call.args, call.kwargs], iter(finite))
    return Recorded(call.op, args, kwargs, run(call.op, args, kwargs))


@pytest.mark.parametrize("model", MODELS)
def test_every_row_of_every_call_of_a_model_gives_what_one_device_gives(model: str) -> None:
    torch.manual_seed(1)
    recorded = [tamed(call) for call in calls(model)]
    wrong = [text for call in recorded for text in failures(call)]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("model", MODELS)
def test_every_op_of_a_model_is_known(model: str) -> None:
    assert not {call.op for call in calls(model) if not rules_of(call).known}


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_a_case_gives_what_one_device_gives(name: str) -> None:
    torch.manual_seed(2)
    op, args, kwargs = CASES[name]()
    call = Recorded(op, args, kwargs, run(op, args, kwargs))
    assert rules_of(call).known
    assert not (wrong := failures(call)), "\n\n".join(wrong)
