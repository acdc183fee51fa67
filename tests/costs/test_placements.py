"""The preferences that the costs of placements encode."""

from dataclasses import dataclass
from math import inf

from stretto.costs.placements import move_cost
from stretto.ir.placement import AxisPlacement, Partial, Replicate, Shard


@dataclass(frozen=True)
class Tensor:
    nbytes: int = 1024
    is_weight: bool = False
    is_viewed: bool = False
    may_be_partial: bool = False
    scatter_dims: tuple[tuple[str, int], ...] = ()


def _cost(source: AxisPlacement, target: AxisPlacement, tensor: Tensor = Tensor()) -> float:
    return move_cost(tensor, "tp", 4, source, target)


def test_what_stays_costs_nothing_and_a_cut_costs_less_than_any_communication() -> None:
    assert _cost(Shard(0), Shard(0)) == 0
    assert 0 < _cost(Replicate(), Shard(0)) < _cost(Shard(0), Shard(1)) < _cost(Shard(0), Replicate())


def test_activations_move_rather_than_weights() -> None:
    assert _cost(Shard(0), Replicate(), Tensor(nbytes=100 * 1024)) < _cost(
        Shard(0), Replicate(), Tensor(is_weight=True)
    )


def test_partial_sums_are_all_reduced_unless_the_plan_shards_activations() -> None:
    assert _cost(Partial(), Replicate()) < _cost(Partial(), Shard(1))
    wanted = Tensor(scatter_dims=(("tp", 1),))
    assert _cost(Partial(), Shard(1), wanted) < _cost(Partial(), Replicate(), wanted)


def test_only_a_broadcast_or_zero_operand_becomes_a_term_of_a_partial_sum() -> None:
    assert _cost(Replicate(), Partial()) == inf
    assert _cost(Replicate(), Partial(), Tensor(may_be_partial=True)) < inf


def test_one_rank_costs_as_much_as_two() -> None:
    costs = [move_cost(Tensor(), "tp", ranks, Shard(0), Replicate()) for ranks in (1, 2)]
    assert costs[0] == costs[1] > 0
