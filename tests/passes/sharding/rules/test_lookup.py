"""Which sharding strategies an op has, which it must not have, and what an uneven shard needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from stretto.ir.placement import AxisPlacement, Partial, Reduce, Replicate, Shard
from stretto.passes.sharding.rules import Lowering, OpStrategies, Strategy, TensorMeta, Tie, strategies_for

from .cases import CASES
from .joint_graphs import Recorded, to_metas
from .ranks import gathered, run, run_on_ranks

SUM = Partial(Reduce.SUM)


def t(*shape: int, dtype: torch.dtype = torch.float32) -> TensorMeta:
    """A tensor's meta."""
    return TensorMeta(shape, dtype)


def ask(op: str, args: tuple[Any, ...], *outputs: TensorMeta, **kwargs: Any) -> OpStrategies:
    """The strategies of one call."""
    return strategies_for(op, args, kwargs, outputs)


def text(strategy: Strategy) -> str:
    """A strategy as "outputs <- inputs": R, S0, P."""
    return f"{' '.join(map(_short, strategy.outputs))} <- {' '.join(map(_short, strategy.inputs))}".strip()


def _short(placement: AxisPlacement | None) -> str:
    if isinstance(placement, Shard):
        return f"S{placement.dim}"
    if isinstance(placement, Partial):
        return "P" if placement == SUM else f"P{placement.reduce}"
    return "-" if placement is None else "R"


PINNED: Mapping[str, tuple[tuple[Any, ...], tuple[TensorMeta, ...], set[str]]] = {
    "aten.mm.default": (
        (t(4, 6), t(6, 8)),
        (t(4, 8),),
        {"R <- R R", "P <- S1 S0", "S0 <- S0 R", "S1 <- R S1", "P <- P R", "P <- R P"},
    ),
    "aten.addmm.default": (
        (t(8), t(4, 6), t(6, 8)),
        (t(4, 8),),
        {"R <- R R R", "P <- P S1 S0", "S0 <- R S0 R", "S1 <- S0 R S1", "P <- P P R", "P <- P R P"},
    ),
    "aten.add.Tensor": ((t(4, 6), t(6)), (t(4, 6),), {"R <- R R", "S0 <- S0 R", "S1 <- S1 S0", "P <- P P"}),
    "aten.mul.Tensor": (
        (t(4, 6), t(6)),
        (t(4, 6),),
        {"R <- R R", "S0 <- S0 R", "S1 <- S1 S0", "P <- P R", "P <- R P"},
    ),
    "aten.exp.default": ((t(4, 6),), (t(4, 6),), {"R <- R", "S0 <- S0", "S1 <- S1"}),
    "aten.sum.dim_IntList": ((t(4, 6), [1]), (t(4),), {"R <- R", "S0 <- S0", "P <- S1", "P <- P"}),
    "aten.mean.dim": ((t(4, 6), [1]), (t(4),), {"R <- R", "S0 <- S0", "P <- P"}),
    "aten.embedding.default": (
        (t(50, 8), t(4, 6, dtype=torch.int64)),
        (t(4, 6, 8),),
        {"R <- R R", "P <- S0 R", "S2 <- S1 R", "S0 <- R S0", "S1 <- R S1", "P <- P R"},
    ),
    "nn.rms_norm_backward": (
        (t(4, 6, 8), t(4, 6, 8), t(4, 6, 1), t(8)),
        (t(4, 6, 8), t(8)),
        {"R R <- R R R R", "S0 P <- S0 S0 S0 R", "S1 P <- S1 S1 S1 R", "P P <- P R R R"},
    ),
    "nn.cross_entropy": (
        (t(12, 50), t(12, dtype=torch.int64)),
        (t(), t(dtype=torch.int64), t(12)),
        {"R R R <- R R", "P P S0 <- S0 S0", "R R R <- S1 R"},
    ),
}


@pytest.mark.parametrize("op", PINNED)
def test_an_op_has_exactly_these_strategies(op: str) -> None:
    args, outputs, expected = PINNED[op]
    assert {text(strategy) for strategy in ask(op, args, *outputs).strategies} == expected


@pytest.mark.parametrize("name", CASES)
def test_the_first_strategy_is_all_replicate(name: str) -> None:
    op, args, kwargs = CASES[name]()
    outputs = tuple(None if out is None else to_metas(out) for out in run(op, args, kwargs))
    first = strategies_for(op, to_metas(args), to_metas(kwargs), outputs).strategies[0]
    assert all(placement == Replicate() for placement in first.inputs)
    assert all(placement in (Replicate(), None) for placement in first.outputs)


@pytest.mark.parametrize(
    "op", ["aten.rsqrt.default", "aten.relu.default", "aten.silu.default", "aten.abs.default", "aten.add.Scalar"]
)
def test_an_op_that_is_not_linear_takes_no_partial_sum(op: str) -> None:
    args = (t(4, 6), 1.0) if op.endswith("Scalar") else (t(4, 6),)
    answer = ask(op, args, t(4, 6))
    assert answer.known
    assert all(SUM not in strategy.inputs for strategy in answer.strategies)


def test_a_cast_that_rounds_takes_no_partial_sum() -> None:
    answer = ask("aten._to_copy.default", (t(4),), t(4, dtype=torch.int64), dtype=torch.int64)
    assert all(SUM not in strategy.inputs for strategy in answer.strategies)


def test_a_dim_of_one_element_is_never_sharded() -> None:
    assert {text(strategy) for strategy in ask("aten.exp.default", (t(1, 6),), t(1, 6)).strategies} == {
        "R <- R",
        "S1 <- S1",
    }


@pytest.mark.parametrize("op", ["aten.nothing.default", "elsewhere.op.default", "aten.rand.default", "nonsense"])
def test_an_op_without_a_rule_is_replicated_and_marked_unknown(op: str) -> None:
    answer = ask(op, ([4, 6],), t(4, 6))
    assert not answer.known
    assert [text(strategy) for strategy in answer.strategies] == ["R <-"]


def test_dropout_is_unknown_because_its_mask_depends_on_the_rank() -> None:
    assert not ask("aten.native_dropout.default", (t(4, 6), 0.1, True), t(4, 6), t(4, 6, dtype=torch.bool)).known


def test_an_unknown_op_has_as_many_inputs_as_tensors_were_given() -> None:
    assert len(ask("elsewhere.op.default", ([t(4), t(4)], t(6)), t(4)).strategies[0].inputs) == 3


def test_strategies_that_need_a_lowering_name_it() -> None:
    needs = {
        name: {
            text(strategy): strategy.lowering
            for strategy in ask(name, PINNED[name][0], *PINNED[name][1]).strategies
            if strategy.lowering
        }
        for name in ("aten.embedding.default", "nn.cross_entropy", "aten.mm.default")
    }
    assert needs == {
        "aten.embedding.default": {"P <- S0 R": Lowering.OFFSET},
        "nn.cross_entropy": {"R R R <- S1 R": Lowering.SOFTMAX},
        "aten.mm.default": {},
    }


def test_a_tie_holds_where_chunk_boundaries_coincide() -> None:
    heads = Tie(24, 1, 6, 4)
    assert [parts for parts in range(1, 9) if heads.holds(parts)] == [1, 2, 3, 6, 7]


def test_a_view_into_heads_is_legal_only_where_heads_are_cut_whole() -> None:
    answer = ask("aten.view.default", (t(2, 24), [2, 6, 4]), t(2, 6, 4))
    heads = next(strategy for strategy in answer.strategies if text(strategy) == "S1 <- S1")
    assert heads.legal(3)
    assert not heads.legal(4)


def test_a_contraction_wants_zeros_as_padding_and_an_extreme_its_infinity() -> None:
    mm = next(
        strategy
        for strategy in ask("aten.mm.default", (t(4, 5), t(5, 8)), t(4, 8)).strategies
        if text(strategy) == "P <- S1 S0"
    )
    amax = next(
        strategy
        for strategy in ask("aten.amax.default", (t(4, 5), [1]), t(4)).strategies
        if text(strategy) == "Pmax <- S1"
    )
    assert mm.fills == (0.0, 0.0)
    assert amax.fill(0) == float("-inf")


def test_padding_of_labels_is_the_label_that_does_not_count() -> None:
    answer = ask("nn.cross_entropy", PINNED["nn.cross_entropy"][0], *PINNED["nn.cross_entropy"][1], ignore_index=7)
    assert next(strategy for strategy in answer.strategies if text(strategy) == "P P S0 <- S0 S0").fill(1) == 7.0


def test_the_check_of_strategies_finds_a_wrong_strategy() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    call = Recorded("aten.exp.default", (x,), {}, (x.exp(),))
    wrong = Strategy((SUM,), (SUM,))
    got = gathered([out[0] for out in run_on_ranks(call, wrong, 2) if out[0] is not None], SUM, x.shape)
    assert not torch.allclose(got[0], x.exp())


def test_the_check_of_strategies_finds_a_missing_fill() -> None:
    x = torch.randn(5, dtype=torch.float64)
    call = Recorded("aten.sum.default", (x,), {}, (x.sum(),))
    parts = [out[0] for out in run_on_ranks(call, Strategy((SUM,), (Shard(0),)), 2) if out[0] is not None]
    assert gathered(parts, SUM, x.sum().shape)[0].isnan()
