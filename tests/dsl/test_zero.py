"""`zero`: what the statement says, and which dim of a parameter it cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stretto.dsl import OwnerKind, ParameterInfo, Plan, PlanCode, PlanError
from stretto.dsl.resolve import resolve_parameters
from stretto.dsl.resolve_stored import resolve_storage, resolve_stored_placements
from stretto.dsl.zero import Zero

MESH = "mesh (pp=2, dp=2, ep=2, tp=2)\nshard inputs batch over dp, ep\n"


def info(name: str, *shape: int) -> ParameterInfo:
    return ParameterInfo(name, (), shape, OwnerKind.LINEAR if name.endswith("weight") else OwnerKind.OTHER)


def stored(lines: str, *parameters: ParameterInfo) -> list[dict[str, int]]:
    return [dict(dims) for dims in resolve_stored_placements(Plan.parse(MESH + lines), parameters)]


@pytest.mark.parametrize(
    "line",
    [
        "zero 1 over dp",
        'zero 3 over dp, ep { keep forward  only "*.weight", "embed"  from 25MB }',
        "zero 2 over ep { from 1500B }",
        "zero 3 over dp { prefetch 0  bucket 25MB }",
        "zero 3 over dp, ep { within ep  reduce bf16 }",
    ],
)
def test_a_statement_prints_as_it_is_written(line: str) -> None:
    plan = Plan.parse(MESH + line)
    assert str(plan).splitlines()[-1] == line
    assert Plan.parse(str(plan)) == plan


def test_items_may_stand_on_lines_of_their_own_and_keep_none_is_the_default() -> None:
    plan = Plan.parse(f"{MESH}zero 3 over dp {{\n  keep none\n  from 4KB\n}}")
    assert plan.stored == (Zero(3, ("dp",), least_bytes=4000),)


def test_a_plan_in_python_is_the_same() -> None:
    plan = Plan.parse('mesh (dp=2)\nzero 3 over dp { only "a" }')
    assert Plan(plan.mesh, (Zero(3, ("dp",), only=("a",)),)) == plan


def test_a_name_of_several_axes_stands_for_them() -> None:
    plan = Plan.parse("mesh (dp=2, cp=2)\naxes all = dp, cp\nshard inputs dim 1 over cp\nzero 3 over all")
    assert plan.stored[0].axes == ("dp", "cp") and plan.used_names == {"all"}
    plan = Plan.parse("mesh (node=2, a=2, b=2)\naxes dp = node, a, b\naxes gpu = a, b\nzero 3 over dp { within gpu }")
    assert plan.stored == (Zero(3, ("node", "a", "b"), within=("a", "b")),) and plan.used_names == {"dp", "gpu"}


def test_the_longest_dim_that_the_ranks_divide_is_cut_else_the_first() -> None:
    found = stored("zero 3 over dp, ep", info("a", 4, 8), info("b", 8, 8), info("c", 4, 6), info("d", 5, 3), info("e"))
    assert found == [{"dp": d, "ep": d} for d in (1, 0, 0, 0)] + [{}]


def test_a_dim_that_no_other_axis_cuts_comes_first_and_else_the_axis_nests_inside() -> None:
    parameters = info("a.weight", 8, 4), info("a.bias", 8), info("b.weight", 8, 3)
    assert stored('shard "*" dim 0 over tp\nzero 3 over dp', *parameters) == [
        {"tp": 0, "dp": 1}, {"tp": 0, "dp": 0}, {"tp": 0, "dp": 0},
    ]  # fmt: skip


def test_an_axis_that_cuts_a_parameter_already_does_not_cut_it_again() -> None:
    found = stored('shard "experts" dim 0 over ep\nzero 3 over dp, ep', info("experts", 8, 4), info("other", 8, 4))
    assert found == [{"ep": 0, "dp": 1}, {"dp": 0, "ep": 0}]


def test_axes_within_a_node_come_first_and_alone_where_all_ranks_do_not_divide() -> None:
    parameters = info("a", 8, 4), info("b", 6, 2), info("c", 3), info("d", 8, 8)
    found = stored('shard "d" dim 0 over ep\nzero 3 over dp, ep { within ep }', *parameters)
    assert [[*dims.items()] for dims in found] == [
        [("ep", 0), ("dp", 0)], [("ep", 0)], [("ep", 0)], [("ep", 0), ("dp", 1)],
    ]  # fmt: skip


def test_only_and_from_leave_parameters_whole_and_the_last_statement_that_matches_decides() -> None:
    lines = 'zero 3 over dp { from 64B }\nzero 3 over ep { only "b*" }'
    assert stored(lines, info("a", 16), info("a.small", 15), info("b", 2)) == [{"dp": 0}, {}, {"ep": 0}]
    plan = Plan.parse(MESH + lines)
    parameters = [info("a.small", 15), info("b", 2)]
    storage = resolve_storage(plan, parameters, resolve_parameters(plan, parameters))
    assert [each.statement for each in storage] == list(plan.stored)


@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    sizes=st.fixed_dictionaries({axis: st.integers(1, 4) for axis in ("dp", "ep", "tp")}),
    tp=st.none() | st.integers(0, 2),
)
def test_no_dim_is_better_than_the_one_that_is_cut(shape: list[int], sizes: dict[str, int], tp: int | None) -> None:
    computed = {} if tp is None or tp >= len(shape) else {"tp": tp}
    found = Zero(3, ("dp", "ep")).cuts(shape, computed, sizes)
    [best] = {*found.values()}
    assert list(found) == ["dp", "ep"]

    def fits(dim: int) -> bool:
        return shape[dim] % (sizes["dp"] * sizes["ep"] * (sizes["tp"] if computed.get("tp") == dim else 1)) == 0

    def rank(dim: int) -> tuple[bool, int, int]:
        return computed.get("tp") != dim or sizes["tp"] == 1, shape[dim], -dim

    fitting = [dim for dim in range(len(shape)) if fits(dim)]
    assert best == max(fitting, key=rank, default=0)


def refused(line: str) -> PlanError:
    with pytest.raises(PlanError) as caught:
        Plan.parse(MESH + line)
    return caught.value


@pytest.mark.parametrize(
    ("line", "code", "says", "helps"),
    [
        ("zero 4 over dp", PlanCode.BAD_ZERO, "there is no ZeRO level 4", ""),
        ("zero 0 over dp", PlanCode.BAD_ZERO, "there is no ZeRO level 0", ""),
        ("zero 3 over tp", PlanCode.BAD_ZERO, 'no input is cut over "tp"', "shard inputs batch over tp"),
        ("zero 3 over ep_", PlanCode.UNKNOWN_AXIS, 'no axis "ep_"', 'did you mean "ep"?'),
        ("zero 3 over dp, dp", PlanCode.AXIS_USED_TWICE, '"dp" is used twice', 'name "dp" once'),
        ("zero 2 over dp { keep forward }", PlanCode.BAD_ZERO, '"keep" is for level 3', "write zero 3"),
        ("zero 3 over dp { keep backward }", PlanCode.BAD_ZERO, '"keep" cannot be "backward"', ""),
        ("zero 3 over dp { keep forward, none }", PlanCode.BAD_ZERO, '"keep" cannot be "none"', ""),
        ("zero 3 over dp { kep forward }", PlanCode.BAD_ZERO, 'no item "kep"', 'did you mean "keep"?'),
        ("zero 3 over dp { from 4 }", PlanCode.BAD_ZERO, '"from" cannot be "4"', ""),
        ("zero 3 over dp { from 1KB  from 2KB }", PlanCode.BAD_ZERO, 'sets "from" twice', "keep one"),
        ("zero 3 over dp { only weight }", PlanCode.BAD_ZERO, '"only" cannot be "weight"', ""),
        ('zero 3 over dp { only "{a" }', PlanCode.BAD_PATTERN, "cannot be read", ""),
        ("zero 3 over dp { prefetch -1 }", PlanCode.BAD_ZERO, "gathered -1 layers ahead", ""),
        ("zero 3 over dp { prefetch two }", PlanCode.BAD_ZERO, '"prefetch" cannot be "two"', ""),
        ("zero 1 over dp { prefetch 2 }", PlanCode.BAD_ZERO, '"prefetch" is for level 3', "write zero 3"),
        ("zero 3 over dp { bucket 25 }", PlanCode.BAD_ZERO, '"bucket" cannot be "25"', ""),
        ("zero 3 over dp { bucket 2000GB }", PlanCode.BAD_ZERO, "a bucket cannot have 2000GB", ""),
        ("zero 3 over dp { within ep }", PlanCode.BAD_ZERO, '"within" names the axis "ep", over which', "add ep"),
        ("zero 3 over dp, ep { within ep, dp }", PlanCode.BAD_ZERO, '"within" names all axes', 'leave "within" out'),
        ("zero 3 over dp, ep { within dp, dp }", PlanCode.AXIS_USED_TWICE, 'names the axis "dp" twice', "once"),
        ('zero 3 over dp, ep { within "dp" }', PlanCode.BAD_ZERO, '"within" cannot be ""dp""', ""),
        ("zero 3 over dp { within 2 }", PlanCode.BAD_ZERO, '"within" cannot be "2"', ""),
        ("zero 3 over dp { reduce int8 }", PlanCode.BAD_ZERO, '"reduce" cannot be "int8"', ""),
        ("zero 3 over dp { reduce fp32, bf16 }", PlanCode.BAD_ZERO, '"reduce" cannot be "bf16"', ""),
        ("zero 3 over dp {}", PlanCode.SYNTAX, 'unexpected "}"', ""),
        ("zero over dp", PlanCode.SYNTAX, 'unexpected "over"', ""),
    ],
)
def test_what_the_statement_cannot_say_is_refused(line: str, code: PlanCode, says: str, helps: str) -> None:
    error = refused(line)
    assert error.code == code and says in error.message and helps in error.help
    assert error.span is not None and error.span.line == 3


def test_statements_gather_equally_far_ahead() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(f'{MESH}zero 3 over dp {{ prefetch 2 }}\nzero 3 over dp {{ only "a" }}')
    error = caught.value
    assert error.code == PlanCode.BAD_ZERO and "gathers 1 layers ahead, and another 2" in error.message
    with pytest.raises(PlanError, match="makes buckets of 0 bytes, and another 4000"):
        Plan.parse(f'{MESH}zero 3 over dp {{ bucket 4KB }}\nzero 3 over dp {{ only "a" }}')
    with pytest.raises(PlanError, match="reduces gradients in the format of precision, and another bf16"):
        Plan.parse(f'{MESH}zero 3 over dp {{ reduce bf16 }}\nzero 3 over dp {{ only "a" }}')
    assert Plan.parse(f"{MESH}zero 3 over dp {{ prefetch 0 }}").prefetch == 0 and Plan.parse(MESH).prefetch == 1


def test_the_pipeline_axis_cuts_no_parameters() -> None:
    error = refused("pipeline over pp { microbatches 2 }\nzero 1 over pp")
    assert error.code == PlanCode.PIPELINE_AXIS and "parameters are sharded over it" in error.message


def test_a_pattern_that_matches_nothing_offers_the_nearest() -> None:
    with pytest.raises(PlanError) as caught:
        stored('zero 3 over dp { only "embedd" }', info("embed", 4))
    assert caught.value.code == PlanCode.NO_MATCH and "embed" in caught.value.help
