"""`experts`: what the statement says, and what is refused."""

from __future__ import annotations

import pytest
from stretto.dsl import OwnerKind, ParameterInfo, Plan, PlanError, resolve_parameters
from stretto.dsl.resolve_stored import resolve_stored_placements

MESH = "mesh (dp=2, tp=2)\n"
EXPERTS = ParameterInfo("mlp.experts.up", (), (4, 6, 8), OwnerKind.OTHER)


def test_a_statement_prints_as_it_is_read() -> None:
    text = 'experts "*.experts", "*.more" over dp, tp { bound 1.5 }'
    [statement] = Plan.parse(MESH + text).experts
    assert str(statement) == text and (statement.axes, statement.bound) == (("dp", "tp"), 1.5)
    capped = 'experts "a" over dp { capacity 1.25  bound 2 }'
    assert str(Plan.parse(MESH + capped).experts[0]) == capped
    assert str(Plan.parse(MESH + 'axes ep = dp, tp\nexperts "a" over ep {\n capacity none\n}').experts[0]) == (
        'experts "a" over dp, tp'
    )


def test_a_capacity_is_its_part_of_the_even_share_rounded_up() -> None:
    """Switch Transformer (arXiv:2101.03961), equation 3: tokens / experts x capacity factor."""
    [statement] = Plan.parse(MESH + 'experts "a" over dp { capacity 1.1 }').experts
    assert [statement.most_rows(rows, 10) for rows in (10, 100, 101)] == [2, 11, 12]
    [statement] = Plan.parse(MESH + 'experts "a" over dp').experts
    assert statement.most_rows(100, 10) is None


def test_experts_whose_weights_move_are_stored_as_others_and_computed_whole() -> None:
    text = f'{MESH}experts "*.experts" over dp {{ move weights }}'
    assert str(Plan.parse(text).experts[0]) == 'experts "*.experts" over dp { move weights }'
    for plan in (Plan.parse(text), Plan.parse(f'{text}\nstore "*" dim 2 over tp')):
        [computed] = resolve_parameters(plan, [EXPERTS])
        [stored] = resolve_stored_placements(plan, [EXPERTS])
        further = {"tp": 2} if plan.stored else {}
        assert computed.dims == {} and stored == {"dp": 0, **further}
    [stored] = resolve_stored_placements(Plan.parse(text.replace("weights", "auto")), [EXPERTS])
    assert stored == {"dp": 0}


def test_experts_are_cut_outside_of_what_shard_cuts() -> None:
    plan = Plan.parse(f'{MESH}shard "*.up" dim 1 over tp\nexperts "*.experts" over dp')
    [sharding] = resolve_parameters(plan, [EXPERTS])
    assert [*sharding.dims.items()] == [("dp", 0), ("tp", 1)]


@pytest.mark.parametrize(
    ("text", "message", "help"),
    [
        ('experts "a" over dp { bond 2 }', 'experts have no item "bond"', 'did you mean "bound"?'),
        ('experts "a" over dp { bound x }', '"bound" cannot be "x"', "a number such as 1.5"),
        ('experts "a" over dp { bound 0.5 }', "no room for 0.5 times the even share", "at least 1"),
        ('experts "a" over dp { bound 2 bound 3 }', 'experts sets "bound" twice', "keep one of them"),
        ('experts "a" over dp { capacity some }', '"capacity" cannot be "some"', "a number such as 1.5 or none"),
        ('experts "a" over dp { capacity 0 }', "takes 0 times the even share of rows", "a number above 0"),
        ('experts "a" over dp { capacity -1 }', '"capacity" cannot be "-1"', "a number such as 1.5 or none"),
        ('experts "a" over dp { inner tp }', 'experts cannot set "inner" yet', "shard cuts the other dims"),
        ('experts "a" over dp { move weight }', '"move" cannot be "weight"', 'did you mean "weights"?'),
        ('experts "a" over dp { move least_loaded }', "cannot go to other ranks yet", "state a bound or a capacity"),
        ('experts "a" over dp, dp', 'the axis "dp" is used twice on one tensor', 'name "dp" once'),
        ('experts "a{" over dp', "cannot be read", ""),
        ('experts "a" over ep', 'the mesh has no axis "ep"', ""),
        ('pipeline over tp { microbatches 2 }\nexperts "a" over tp', "experts are sharded over it", ""),
    ],
)
def test_mistakes_are_refused(text: str, message: str, help: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(MESH + text)
    assert message in str(caught.value) and help in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('experts "*.experts" over dp\nshard "*.up" dim 2 over dp', 'the axis "dp" shards "mlp.experts.up" already'),
        ('axes ep = dp, tp\nexperts "*.experts" over ep', "6 experts, which 4 ranks over dp, tp cannot share"),
        ('experts "*.expert" over dp', 'did you mean "*.experts"?'),
    ],
)
def test_parameters_that_do_not_fit_are_refused(text: str, message: str) -> None:
    shape = (6, 6, 8) if "6 experts" in message else EXPERTS.shape
    with pytest.raises(PlanError) as caught:
        resolve_parameters(Plan.parse(MESH + text), [ParameterInfo(EXPERTS.name, (), shape, EXPERTS.owner_kind)])
    assert message in str(caught.value)


@pytest.mark.parametrize("glob", ["*.experts", "*.experts.*", "layers.0.experts"])
def test_of_a_list_of_modules_each_parameter_is_cut_on_the_first_dim_that_ranks_divide(glob: str) -> None:
    shapes = {"w1.weight": (8, 6), "w1.bias": (8,), "w2.weight": (5, 8), "scale": (3,)}
    infos = [
        ParameterInfo(f"layers.0.experts.{number}.{name}", (), shape, OwnerKind.LINEAR)
        for number in range(2)
        for name, shape in shapes.items()
    ]
    found = resolve_parameters(Plan.parse(MESH + f'experts "{glob}" over dp'), infos)
    assert [dict(each.dims) for each in found] == [{"dp": 0}, {"dp": 0}, {"dp": 1}, {}] * 2


def test_a_dim_that_shard_cuts_is_left_to_it() -> None:
    plan = Plan.parse('mesh (dp=2, tp=2)\nexperts "*.experts" over dp\nshard "*.w1" dim 0 over tp')
    [found] = resolve_parameters(plan, [ParameterInfo("mlp.experts.0.w1.weight", (), (8, 6), OwnerKind.LINEAR)])
    assert dict(found.dims) == {"dp": 1, "tp": 0}
