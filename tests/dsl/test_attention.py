"""`attention over`: what the statement says, and what is refused."""

from __future__ import annotations

import pytest
from stretto.dsl import Plan, PlanCode, PlanError
from stretto.dsl.attention import Attention, Layout, Method

MESH = "mesh (dp=2, cp=2, tp=2)\nshard inputs dim 1 over cp\n"


def test_a_layout_is_printed_where_it_is_not_the_usual_one() -> None:
    text = "attention over cp { method ring  layout zigzag }"
    assert Plan.parse(MESH + text).attention == (Attention(("cp",), Method.RING, Layout.ZIGZAG),)
    assert str(Plan.parse(MESH + text)).splitlines()[-1] == text
    usual = Plan.parse(f"{MESH}attention over cp {{ layout contiguous  method ring }}")
    assert str(usual).splitlines()[-1] == "attention over cp { method ring }"


def test_two_axes_may_have_a_method_each() -> None:
    text = "mesh (a=2, b=2)\nshard inputs dim 1 over a, b\nattention over a, b { method ring_all_to_all }"
    [statement] = Plan.parse(text).attention
    assert str(statement) == text.splitlines()[-1]
    assert statement.methods == {"a": Method.RING, "b": Method.ALL_TO_ALL}


@pytest.mark.parametrize("method", [Method.ALL_TO_ALL, Method.RING, Method.BIDIRECTIONAL, Method.STATE, Method.GATHER])
def test_a_statement_prints_as_it_is_written(method: Method) -> None:
    line = f"attention over cp {{ method {method} }}"
    plan = Plan.parse(MESH + line)
    assert str(plan).splitlines()[-1] == line
    assert Plan.parse(str(plan)) == plan == Plan(plan.mesh, (*plan.statements[:-1], Attention(("cp",), method)))


def test_a_name_of_several_axes_stands_for_them() -> None:
    text = "mesh (a=2, b=2)\naxes cp = b, a\nshard inputs dim 1 over cp\nattention over cp {\n method gather\n}"
    [statement] = Plan.parse(text).attention
    assert statement.axes == ("b", "a")


@pytest.mark.parametrize(
    ("line", "message", "way_out"),
    [
        ("attention over cp { methd gather }", 'attention has no item "methd"', 'did you mean "method"?'),
        ("attention over cp { method gahter }", '"method" cannot be "gahter"', 'did you mean "gather"?'),
        ("attention over cp { method gather method gather }", 'attention sets "method" twice', "keep one of them"),
        (
            "attention over cp { method state  layout zigzag }",
            "the layout zigzag is for rings, whose work it balances: state has no use for it",
            "leave the layout out, or write method ring",
        ),
        (
            "attention over cp { method gather }\nattention over cp { method all_to_all }",
            'attention over "cp" has two methods',
            "keep one of the two statements",
        ),
        (
            "attention over cp { method gather  layout zigzag }",
            "the layout zigzag is for rings, whose work it balances: gather has no use for it",
            "leave the layout out, or write method ring",
        ),
        (
            "attention over cp { method ring  layout balanced }",
            'attention cannot have the layout "balanced" yet',
            "write layout contiguous or layout zigzag",
        ),
        (
            "attention over cp { method ring_all_to_all }",
            "ring_all_to_all is over two axes, not 1",
            "name two axes, or write method ring or all_to_all",
        ),
        (
            "attention over tp { method gather }",
            'the axis "tp" cuts no tokens: no input is cut over it',
            "add shard inputs dim 1 over tp, if dim 1 are the tokens",
        ),
        ("attention over dp { method gather }", 'the axis "dp" cuts no tokens: it cuts the batch of the inputs', ""),
    ],
)
def test_what_cannot_be_said_is_refused_with_a_way_out(line: str, message: str, way_out: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(MESH + line)
    assert (caught.value.code, caught.value.message, caught.value.help) == (PlanCode.BAD_ATTENTION, message, way_out)


def test_an_axis_that_cuts_the_batch_is_shown_where_it_does() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse("mesh (a=2)\nshard inputs batch over a\nattention over a { method gather }")
    [(note, span)] = caught.value.notes
    assert note == "it is cut here" and span is not None and span.line == 2


@pytest.mark.parametrize(("axis", "code"), [("cp, cp", PlanCode.AXIS_USED_TWICE), ("xp", PlanCode.UNKNOWN_AXIS)])
def test_an_axis_twice_or_unknown_is_refused(axis: str, code: PlanCode) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(f"{MESH}attention over {axis} {{ method gather }}")
    assert caught.value.code == code


def test_the_pipeline_axis_cuts_no_tokens() -> None:
    text = f"{MESH}pipeline over cp {{ microbatches 2 }}\nattention over cp {{ method gather }}"
    with pytest.raises(PlanError) as caught:
        Plan.parse(text)
    assert caught.value.code == PlanCode.PIPELINE_AXIS
