"""What plans parse to, where their parts stand, and what they say without a model."""

from pathlib import Path

import pytest
from stretto.dsl import (
    Dim,
    Mesh,
    Plan,
    PlanCode,
    PlanError,
    Role,
    ShardActivations,
    ShardInputs,
    ShardParameters,
    check_world,
)

MEGATRON = """\
# Megatron-style tensor parallelism
mesh (dp=2, tp=2)

shard "*.{q,k,v}_proj", "*.up_proj"  columns over tp   # cut by output features
shard "*.o_proj",     # a list goes on after a comma
      "*.down_proj"                  rows over tp
shard "lm_head" vocab over dp, tp
shard "*.norm.weight" dim -1 over tp
shard activations tokens over tp
shard inputs batch over dp
"""


def test_every_statement_parses_to_its_value() -> None:
    assert Plan.parse(MEGATRON) == Plan(
        Mesh((("dp", 2), ("tp", 2))),
        (
            ShardParameters(("*.{q,k,v}_proj", "*.up_proj"), Role.COLUMNS, ("tp",)),
            ShardParameters(("*.o_proj", "*.down_proj"), Role.ROWS, ("tp",)),
            ShardParameters(("lm_head",), Role.VOCAB, ("dp", "tp")),
            ShardParameters(("*.norm.weight",), Dim(-1), ("tp",)),
            ShardActivations(Role.TOKENS, ("tp",)),
            ShardInputs(Role.BATCH, ("dp",)),
        ),
    )


def test_a_plan_prints_one_statement_a_line_without_comments() -> None:
    text = 'mesh (dp = 2,\n  tp=2\n)\nshard  "a" ,"b"   dim 1 over dp,tp # why\n'
    assert str(Plan.parse(text)) == 'mesh (dp=2, tp=2)\nshard "a", "b" dim 1 over dp, tp'


def test_plans_that_say_the_same_are_equal_wherever_they_were_written() -> None:
    first = Plan.parse("mesh (tp=2)\nshard inputs dim 1 over tp", "a.plan")
    second = Plan.parse("# other\nmesh ( tp=2 )\n\n\n  shard inputs dim 1 over tp", "b.plan")
    assert first == second
    assert hash(first) == hash(second)


def test_a_plan_keeps_its_text_and_the_places_of_its_parts() -> None:
    plan = Plan.parse(MEGATRON, "gpt.plan")
    places = plan.parameters[0].places
    assert (plan.file, plan.text) == ("gpt.plan", MEGATRON)
    assert str(plan.mesh.span) == "gpt.plan:2:1"
    assert [str(span) for span in places.patterns] == ["gpt.plan:4:7", "gpt.plan:4:25"]
    assert str(places.layout) == "gpt.plan:4:38"
    assert [str(span) for span in places.axes] == ["gpt.plan:4:51"]
    assert plan.parameters[0].span is not None
    assert plan.parameters[0].span.length == len('shard "*.{q,k,v}_proj", "*.up_proj"  columns over tp')


def test_words_of_the_language_can_name_axes() -> None:
    plan = Plan.parse("mesh (over=2, shard=2, dim=2)\nshard inputs dim 1 over over, shard, dim")
    assert plan.inputs[0].axes == ("over", "shard", "dim")


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.plan"
    path.write_bytes(b'\xef\xbb\xbfmesh (tp=2)\r\nshard "a",\r\n  "b" dim 0 over tp\r\n')
    assert str(Plan.load(path)) == 'mesh (tp=2)\nshard "a", "b" dim 0 over tp'


def test_a_mesh_has_as_many_ranks_as_its_sizes_multiply_to() -> None:
    mesh = Plan.parse("mesh (dp=2, cp=3, tp=4)").mesh
    assert (mesh.size, mesh.names) == (24, ("dp", "cp", "tp"))
    assert mesh.axes == (("dp", 2), ("cp", 3), ("tp", 4))


def test_an_axis_named_dp_shards_the_batch_when_no_statement_mentions_it() -> None:
    plan = Plan.parse("mesh (tp=2, dp=2)")
    assert plan.inputs == (ShardInputs(Role.BATCH, ("dp",)),)
    assert plan.data_axes == ("dp",)
    assert str(plan.inputs[0].span) == "<plan>:1:13"
    assert str(plan) == "mesh (tp=2, dp=2)"


def test_a_statement_about_dp_replaces_what_its_name_implies() -> None:
    plan = Plan.parse("mesh (dp=2)\nshard inputs dim 1 over dp")
    assert plan.inputs == (ShardInputs(Dim(1), ("dp",)),)
    assert plan.data_axes == ()


def test_data_axes_are_in_mesh_order_and_include_dim_0() -> None:
    plan = Plan.parse("mesh (a=2, dp=2, b=2)\nshard inputs dim 0 over b, a\nshard inputs batch over dp")
    assert plan.data_axes == ("a", "dp", "b")


def test_a_mesh_without_dp_has_no_data_axes() -> None:
    assert Plan.parse("mesh (tp=2)").data_axes == ()


def test_the_number_of_processes_must_be_the_number_of_ranks() -> None:
    plan = Plan.parse("mesh (dp=2, tp=2)")
    check_world(plan, 4)
    with pytest.raises(PlanError, match=r"the mesh \(dp=2, tp=2\) has 4 ranks, but 3 processes were started") as caught:
        check_world(plan, 3)
    assert caught.value.code == PlanCode.WORLD_SIZE
    assert str(caught.value.span) == "<plan>:1:1"


def test_one_process_and_one_rank_are_counted_as_one() -> None:
    with pytest.raises(PlanError, match="has 2 ranks, but 1 process was started"):
        check_world(Plan.parse("mesh (tp=2)"), 1)
    with pytest.raises(PlanError, match="has 1 rank, but 2 processes were started"):
        check_world(Plan.parse("mesh (tp=1)"), 2)


def test_a_loaded_plan_bears_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "gpt.plan"
    path.write_text(MEGATRON)
    assert Plan.load(path) == Plan.parse(MEGATRON)
    assert Plan.load(str(path)).file == str(path)


@pytest.mark.parametrize("name", ["absent.plan", ".", "nul\0.plan"])
def test_a_plan_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError, match="cannot read the plan") as caught:
        Plan.load(f"{tmp_path}/{name}")
    assert caught.value.code == PlanCode.NOT_FOUND


def test_a_plan_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "dp_tp.plan").write_text(MEGATRON)
    (tmp_path / "dp_tp.py").write_text("")
    with pytest.raises(PlanError) as caught:
        Plan.load(tmp_path / "dp-tp.plan")
    assert caught.value.help == f'did you mean "{tmp_path / "dp_tp.plan"}"?'
    with pytest.raises(PlanError, match="there is no folder"):
        Plan.load(tmp_path / "plans" / "dp_tp.plan")


def test_a_plan_that_is_not_text_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "weights.plan"
    path.write_bytes(b"mesh\xff\xfe")
    with pytest.raises(PlanError, match=r"not UTF-8 text \(byte 4\)") as caught:
        Plan.load(path)
    assert caught.value.code == PlanCode.NOT_TEXT


def test_values_made_in_python_are_checked_like_text() -> None:
    with pytest.raises(PlanError) as caught:
        ShardActivations(Role.ROWS, ("tp",))
    assert caught.value.code == PlanCode.UNKNOWN_ROLE
    with pytest.raises(PlanError) as caught:
        ShardInputs(Role.BATCH, ())
    assert caught.value.code == PlanCode.SYNTAX
    with pytest.raises(PlanError) as caught:
        Mesh((("d p", 2),))
    assert caught.value.code == PlanCode.BAD_MESH
    with pytest.raises(PlanError) as caught:
        Plan(Mesh((("tp", 2),)), (ShardInputs(Role.BATCH, ("dp",)),))
    assert caught.value.code == PlanCode.UNKNOWN_AXIS


@pytest.mark.parametrize("patterns", [(), ('a"b',), ("a\nb",)])
def test_patterns_that_no_text_can_spell_are_refused(patterns: tuple[str, ...]) -> None:
    with pytest.raises(PlanError) as caught:
        ShardParameters(patterns, Role.COLUMNS, ("tp",))
    assert caught.value.code == PlanCode.BAD_PATTERN
