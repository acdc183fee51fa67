"""`overlap`: what the statement says, and what it refuses."""

from __future__ import annotations

import pytest
from stretto.dsl import Plan, PlanError
from stretto.dsl.communication.overlap import KINDS, NORMS, RINGS, Overlap
from stretto.dsl.error import OverlapCode


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{ level 0 }", Overlap(level=0)),
        ("{ level 1  lanes compute, tp }", Overlap(level=1, lanes=("compute", "tp"))),
        ("{ memory +2.5% }", Overlap(growth=2.5)),
        ("{ fuse all_gather+matmul, matmul+reduce_scatter }", Overlap(fuse=RINGS)),
        ("{ hide send  memory 60GB }", Overlap(hide=("send",), memory=60 * 10**9)),
        ("{\n  hide all_gather, reduce_scatter   # of zero\n}", Overlap(hide=("all_gather", "reduce_scatter"))),
    ],
)
def test_a_statement_prints_as_it_is_written(block: str, said: Overlap) -> None:
    plan = Plan.parse(f"mesh (tp=2)\noverlap {block}")
    assert plan.overlap == said and Plan.parse(str(plan)) == plan


def test_a_level_or_hide_says_which_kinds_move_and_neither_is_level_1() -> None:
    moved = [Plan.parse(f"mesh (tp=2)\n{line}").overlap.moved for line in ("", "overlap { }", "overlap { lanes tp }")]
    assert moved == [KINDS] * 3
    assert Overlap(level=0).moved == () and Overlap(hide=("send",)).moved == ("send",)
    assert Overlap(hide=("send",), fuse=RINGS).moved == ("send", "permute")
    assert Overlap(hide=("send",), fuse=NORMS).moved == ("send",)


@pytest.mark.parametrize(
    ("line", "message", "help"),
    [
        ("overlap { level 1  hide send }", '"level 1" and "hide" exclude each other', "keep one of them"),
        ("overlap { level 1  fuse all_gather+matmul }", '"level 1" and "fuse" exclude each other', "keep one of them"),
        ("overlap { fuse all_gather+mm }", 'no fusion "all_gather+mm"', 'did you mean "all_gather+matmul"?'),
        (
            "overlap { fuse all_to_all+grouped_matmul }",
            'cannot fuse "all_to_all+grouped_matmul" yet',
            "hide all_to_all",
        ),
        ("overlap { level 2 }", '"level 2" chooses by cost', "by hand"),
        ("overlap { level auto }", '"level auto" chooses by cost', "by hand"),
        ("overlap { level 3 }", 'there is no level "3"', ""),
        ("overlap { level 0, 1 }", '"level" cannot be "1"', ""),
        ("overlap { hide all_gathr }", 'no kind "all_gathr"', 'did you mean "all_gather"?'),
        ("overlap { hide send, send }", 'the kind "send" is named twice', "keep one of them"),
        ("overlap { lanes compute, tq }", 'no operation is on a lane "tq"', "an axis names the lane"),
        ("overlap { lanes tp, tp }", 'the lane "tp" is named twice', "keep one of them"),
        ("overlap { hides send }", 'overlap has no item "hides"', 'did you mean "hide"?'),
        ("overlap { level 0  level 0 }", 'overlap sets "level" twice', "keep one of them"),
        ("overlap { memory 5% }", '"memory" cannot be "5%"', ""),
        ("overlap { memory +5%, +6% }", '"memory" cannot be "+6%"', ""),
        ("overlap { share compute, 50% }", 'overlap cannot set "share" yet', "all lanes share"),
        ("overlap { level 0 }\noverlap { level 1 }", 'the plan has a second "overlap"', "merge"),
    ],
)
def test_what_does_not_exist_is_refused_at_its_place(line: str, message: str, help: str) -> None:
    with pytest.raises(PlanError) as refused:
        Plan.parse("mesh (tp=2)\n" + line)
    assert refused.value.code == OverlapCode.BAD_OVERLAP and message in refused.value.message
    assert help in refused.value.help and refused.value.span is not None
