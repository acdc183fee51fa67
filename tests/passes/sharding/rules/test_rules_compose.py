"""Strategies are per axis: any two of a call, on two axes of a mesh, must be valid together, also nested on one dim."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from stretto.ir.placement import AxisPlacement, Partial, Shard, chunk_size
from stretto.passes.partition.localize import LocalCall, with_local_sizes
from stretto.passes.sharding.rules import Lowering, Strategy
from torch import Tensor

from .cases import CASES
from .joint_graphs import MODELS, Recorded, calls, to_metas
from .ranks import LOWERINGS, Results, gathered, run, scattered, tensors_of, with_tensors
from .test_rules_hold import largest, strategies_of, tamed

SIZE = 2
RANKS = list(product(range(SIZE), range(SIZE)))
Pair = tuple[AxisPlacement, AxisPlacement]
ByRank = dict[tuple[int, int], Tensor]


def nested(pair: Pair) -> bool:
    """Whether both axes shard the same dim: then they act as one flattened group."""
    return isinstance(pair[0], Shard) and pair[0] == pair[1]


def spread(value: Tensor, pair: Pair, fills: tuple[float | None, float | None]) -> ByRank:
    """What each rank of the mesh holds; partial sums are split before shards are cut, so that fills stay."""
    if nested(pair):
        fill = fills[0] if fills[0] is not None else fills[1]
        return dict(zip(RANKS, scattered(value, pair[0], SIZE * SIZE, fill), strict=True))
    first = 0 if isinstance(pair[0], Partial) else 1
    by_rank: ByRank = {}
    for i, outer in enumerate(scattered(value, pair[first], SIZE, fills[first])):
        for j, inner in enumerate(scattered(outer, pair[1 - first], SIZE, fills[1 - first])):
            by_rank[(i, j) if first == 0 else (j, i)] = inner
    return by_rank


def joined(by_rank: ByRank, pair: Pair, shape: torch.Size) -> list[Tensor]:
    """The global value, once for each of its copies on the mesh."""
    if nested(pair):
        return gathered([by_rank[rank] for rank in RANKS], pair[0], shape)
    gathered_rows = [gathered([by_rank[i, j] for j in range(SIZE)], pair[1], shape) for i in range(SIZE)]
    return [whole for column in zip(*gathered_rows, strict=True) for whole in gathered(list(column), pair[0], shape)]


def pairs_of(left: tuple[AxisPlacement | None, ...], right: tuple[AxisPlacement | None, ...]) -> list[Pair]:
    """The placements of each tensor on the two axes; absent results are left out."""
    return [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]


def legal(a: Strategy, b: Strategy) -> bool:
    """Whether two strategies may be combined, by the rules of `choice.py`."""
    shared = any(nested(pair) for pair in [*pairs_of(a.inputs, b.inputs), *pairs_of(a.outputs, b.outputs)])
    if {Lowering.STATE, Lowering.STATISTICS, Lowering.HALO, Lowering.EXCHANGE} & {a.lowering, b.lowering}:
        return False
    if (a.lowering or b.lowering) and (shared or (a.lowering and b.lowering)):
        return False
    parts = SIZE * SIZE if shared else SIZE
    return a.legal(parts) and b.legal(parts)


def local_shape(shape: tuple[int, ...], pair: Pair) -> tuple[int, ...]:
    """The padded shape of a rank's part."""
    cuts = [SIZE ** sum(p == Shard(d) for p in pair) for d in range(len(shape))]
    return tuple(chunk_size(n, parts) for n, parts in zip(shape, cuts, strict=True))


def run_on_mesh(call: Recorded, a: Strategy, b: Strategy) -> dict[tuple[int, int], Results]:
    """Each rank's results."""
    tensors = [t.contiguous() for t in tensors_of([call.args, call.kwargs])]
    parts = [spread(t, (a.inputs[i], b.inputs[i]), (a.fill(i), b.fill(i))) for i, t in enumerate(tensors)]
    outputs = to_metas(call.outputs)
    shapes = [
        None if meta is None or p is None or q is None else local_shape(meta.shape, (p, q))
        for meta, p, q in zip(outputs, a.outputs, b.outputs, strict=True)
    ]
    local_calls = {}
    for rank in RANKS:
        args, kwargs = with_tensors([call.args, call.kwargs], iter([part[rank] for part in parts]))
        local_calls[rank] = with_local_sizes(call.op, args, kwargs, outputs, shapes)
    return _lowered(call.op, a, b, local_calls)


def _lowered(
    op: str, a: Strategy, b: Strategy, local_calls: dict[tuple[int, int], LocalCall]
) -> dict[tuple[int, int], Results]:
    lowering = a.lowering or b.lowering
    if lowering is None:
        return {rank: run(*local) for rank, local in local_calls.items()}
    results: dict[tuple[int, int], Results] = {}
    for fixed in range(SIZE):
        group = [(i, fixed) if a.lowering else (fixed, i) for i in range(SIZE)]
        results |= zip(group, LOWERINGS[op, lowering]([local_calls[rank] for rank in group]), strict=True)
    return results


def check(call: Recorded, a: Strategy, b: Strategy) -> None:
    """The two strategies together give the result of one device."""
    ranks = run_on_mesh(call, a, b)
    for index, expected in enumerate(call.outputs):
        p, q = a.outputs[index], b.outputs[index]
        if expected is None or p is None or q is None:
            continue
        parts = {rank: result for rank, results in ranks.items() if (result := results[index]) is not None}
        tolerance = 1e-12 * max(1.0, *(largest(t) for t in (expected, *parts.values())))
        for actual in joined(parts, (p, q), expected.shape):
            torch.testing.assert_close(
                actual, expected, rtol=0, atol=tolerance, msg=lambda text: f"{call}\n{a}\n{b}\n{text}"
            )


def check_all(call: Recorded) -> int:
    """Check every pair of the call's strategies; returns how many there are."""
    strategies = strategies_of(call).strategies
    pairs = [(a, b) for a in strategies for b in strategies if legal(a, b)]
    for a, b in pairs:
        check(call, a, b)
    return len(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_two_strategies_of_a_call_of_a_model_are_valid_together_on_two_axes(model: str) -> None:
    torch.manual_seed(4)
    assert sum(check_all(tamed(call)) for call in calls(model)) > 1000


def test_two_strategies_of_a_case_are_valid_together_on_two_axes() -> None:
    torch.manual_seed(5)
    for make in CASES.values():
        op, args, kwargs = make()
        assert check_all(Recorded(op, args, kwargs, run(op, args, kwargs)))
