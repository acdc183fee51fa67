"""`axes`: a name for several axes, which the plan replaces; and the statement that axes named `dp` imply."""

from __future__ import annotations

import pytest
from stretto.dsl import Dim, Mesh, Plan, PlanCode, PlanError, Role, ShardInputs, ShardParameters
from stretto.dsl.axes import NamedAxes

MESH = "mesh (pp=2, dp=2, cp=2, tp=2)\n"


def refused(text: str) -> PlanError:
    with pytest.raises(PlanError) as caught:
        Plan.parse(text)
    return caught.value


def test_a_name_stands_for_its_axes_in_every_statement_that_shards() -> None:
    plan = Plan.parse(
        f"{MESH}axes ep = cp, dp\n"
        'shard "a" dim 0 over ep, tp\nstore "b" dim 0 over ep\nshard activations tokens over cp'
    )
    assert plan.parameters[0].axes == ("cp", "dp", "tp")
    assert plan.stored[0].axes == ("cp", "dp")
    assert plan.used_names == {"ep"}
    assert Plan.parse(str(plan)) == plan


def test_a_plan_in_python_is_the_same() -> None:
    mesh = Mesh((("dp", 2), ("cp", 2)))
    plan = Plan(mesh, (NamedAxes("ep", ("dp", "cp")), ShardParameters(("a",), Dim(0), ("ep",))))
    assert plan == Plan.parse('mesh (dp=2, cp=2)\naxes ep = dp, cp\nshard "a" dim 0 over ep')


def test_errors_about_an_axis_point_at_the_name_that_was_written() -> None:
    error = refused(f'{MESH}axes ep = dp, cp\nshard "a" columns over ep, cp')
    assert (error.code, str(error.span)) == (PlanCode.AXIS_USED_TWICE, "<plan>:3:28")
    error = refused(f"{MESH}axes ep = dp, cp\nshard activations tokens over ep")
    assert (error.code, str(error.span)) == (PlanCode.AXIS_USED_TWICE, "<plan>:3:31")


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("axes ep = dp, ep", PlanCode.UNKNOWN_AXIS, 'the mesh has no axis "ep"'),
        ("axes tp = dp, cp", PlanCode.DUPLICATE_AXIS, 'two axes named "tp"'),
        ("axes a = dp\naxes a = cp", PlanCode.DUPLICATE_AXIS, 'two axes named "a"'),
        ("axes ep = dp, dp", PlanCode.AXIS_USED_TWICE, '"ep" names the axis "dp" twice'),
        ("axes ep = dp, cp\npipeline over ep { microbatches 2 }", PlanCode.UNKNOWN_AXIS, '"ep" names dp, cp'),
    ],
)
def test_a_name_that_cannot_be_is_refused(line: str, code: PlanCode, says: str) -> None:
    error = refused(MESH + line)
    assert error.code == code and says in error.message


def test_axes_named_dp_imply_that_they_shard_the_batch() -> None:
    assert Plan.parse("mesh (dp=2, cp=2)").implied == ShardInputs(Role.BATCH, ("dp",))
    assert Plan.parse("mesh (rep=2, cp=2)\naxes dp = rep, cp").implied == ShardInputs(Role.BATCH, ("rep", "cp"))
    assert Plan.parse("mesh (rep=2, cp=2)\naxes dp = rep, cp\nshard inputs dim 1 over cp").implied is None
    assert Plan.parse("mesh (ep=2)").implied is None


def test_eight_axes_are_a_mesh_and_nine_are_not() -> None:
    axes = [f"a{number}=1" for number in range(9)]
    assert len(Plan.parse(f"mesh ({', '.join(axes[:8])})").mesh.axes) == 8
    error = refused(f"mesh ({', '.join(axes)})")
    assert error.code == PlanCode.BAD_MESH and "9 axes" in error.message and "make one axis" in error.help
