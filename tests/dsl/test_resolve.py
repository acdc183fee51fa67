"""What plans say of a model's parameters, inputs and activations."""

import subprocess
import sys

import pytest
from stretto.dsl import (
    OwnerKind,
    ParameterInfo,
    ParameterSharding,
    Plan,
    PlanCode,
    PlanError,
    batch_inputs,
    resolve_activations,
    resolve_inputs,
    resolve_parameters,
)
from stretto.dsl.resolve_values import resolve_buffers


def info(name: str, *shape: int, kind: OwnerKind = OwnerKind.LINEAR, aliases: tuple[str, ...] = ()) -> ParameterInfo:
    return ParameterInfo(name, aliases, shape, kind)


MODEL = (
    info("embed.weight", 100, 8, kind=OwnerKind.EMBEDDING, aliases=("head.weight",)),
    info("h.0.up.weight", 32, 8),
    info("h.0.up.bias", 32),
    info("h.0.down.weight", 8, 32),
    info("h.0.down.bias", 8),
    info("h.0.fc.weight", 8, 32, kind=OwnerKind.LINEAR_TRANSPOSED),
    info("h.0.fc.bias", 32, kind=OwnerKind.LINEAR_TRANSPOSED),
    info("h.0.norm.weight", 8, kind=OwnerKind.OTHER),
)


def resolved(*statements: str) -> dict[str, dict[str, int]]:
    """The dims by axis of every parameter of MODEL that is not whole, under a mesh (dp=2, tp=2)."""
    plan = Plan.parse("\n".join(["mesh (dp=2, tp=2)", *statements]))
    return {actual.name: dict(actual.dims) for actual in resolve_parameters(plan, MODEL) if actual.dims}


def refused(*statements: str) -> PlanError:
    with pytest.raises(PlanError) as caught:
        resolved(*statements)
    return caught.value


def under_caret(error: PlanError) -> str:
    assert error.span is not None
    return error.span.text[error.span.column - 1 :][: error.span.length]


@pytest.mark.parametrize(
    ("statement", "dims"),
    [
        ('shard "*.up" columns over tp', {"h.0.up.weight": 0, "h.0.up.bias": 0}),
        ('shard "*.up" vocab over tp', {"h.0.up.weight": 0, "h.0.up.bias": 0}),
        ('shard "*.down" rows over tp', {"h.0.down.weight": 1}),
        ('shard "*.fc" columns over tp', {"h.0.fc.weight": 1, "h.0.fc.bias": 0}),
        ('shard "*.fc" vocab over tp', {"h.0.fc.weight": 1, "h.0.fc.bias": 0}),
        ('shard "*.fc" rows over tp', {"h.0.fc.weight": 0}),
        ('shard "embed" vocab over tp', {"embed.weight": 0}),
        ('shard "*.up.weight" columns over tp', {"h.0.up.weight": 0}),
        ('shard "*.norm.weight" dim -1 over tp', {"h.0.norm.weight": 0}),
        ('shard "*.up.weight" dim -1 over tp', {"h.0.up.weight": 1}),
        ('shard "head" dim 1 over tp', {"embed.weight": 1}),
    ],
)
def test_a_role_means_a_dim_by_the_kind_of_the_owner(statement: str, dims: dict[str, int]) -> None:
    assert resolved(statement) == {name: {"tp": dim} for name, dim in dims.items()}


def test_unmatched_parameters_are_whole_and_have_no_statement() -> None:
    plan = Plan.parse("mesh (tp=2)")
    assert resolve_parameters(plan, MODEL) == tuple(ParameterSharding(parameter.name, {}) for parameter in MODEL)


def test_the_last_matching_statement_decides_alone() -> None:
    statements = ('shard "h.*.up" columns over tp', 'shard "*.up.weight" dim 1 over dp')
    assert resolved(*statements) == {"h.0.up.weight": {"dp": 1}, "h.0.up.bias": {"tp": 0}}
    assert resolved(*reversed(statements))["h.0.up.weight"] == {"tp": 0}


def test_several_axes_cut_one_dim_in_the_order_of_the_statement() -> None:
    for axes in (["tp", "dp"], ["dp", "tp"]):
        statement = f'shard "*.up.weight" columns over {", ".join(axes)}'
        assert list(resolved(statement)["h.0.up.weight"].items()) == [(axis, 0) for axis in axes]


def test_a_tied_parameter_cut_over_the_same_axes_in_two_orders_is_refused() -> None:
    error = refused('shard "embed" vocab over tp, dp', 'shard "head" vocab over dp, tp')
    assert error.code == PlanCode.ALIASES_DISAGREE
    assert "dim 0 over dp, tp and the second sharded on dim 0 over tp, dp" in error.message


def test_the_result_bears_the_statement_that_decided() -> None:
    plan = Plan.parse('mesh (tp=2)\nshard "*.down" rows over tp\nshard "*.down.bias" dim 0 over tp')
    spans = {actual.name: actual.span for actual in resolve_parameters(plan, MODEL)}
    assert (str(spans["h.0.down.weight"]), str(spans["h.0.down.bias"])) == ("<plan>:2:1", "<plan>:3:1")


def test_a_bias_that_rows_leave_whole_still_bears_its_statement() -> None:
    plan = Plan.parse('mesh (tp=2)\nshard "*.down" rows over tp')
    actual = {actual.name: actual for actual in resolve_parameters(plan, MODEL)}["h.0.down.bias"]
    assert (actual.dims, str(actual.span)) == ({}, "<plan>:2:1")


def test_a_pattern_matches_the_owner_but_not_a_module_above_it() -> None:
    assert refused('shard "h.0" columns over tp').code == PlanCode.NO_MATCH


def test_a_pattern_that_matches_nothing_offers_the_nearest() -> None:
    error = refused('shard "*.up", "*.dwn" rows over tp')
    assert error.code == PlanCode.NO_MATCH
    assert under_caret(error) == '"*.dwn"'
    assert error.help == 'did you mean "*.down"?'


def test_a_pattern_like_nothing_is_shown_how_names_look() -> None:
    assert refused('shard "zzzzzz" rows over tp').help == 'names in this model look like "h.0.down.weight"'


def test_a_model_without_parameters_matches_no_pattern() -> None:
    with pytest.raises(PlanError, match="the model has no parameters"):
        resolve_parameters(Plan.parse('mesh (tp=2)\nshard "*" dim 0 over tp'), ())


def test_a_dim_that_the_parameter_lacks_is_refused_with_its_shape() -> None:
    error = refused('shard "*.up" dim 1 over tp')
    assert error.code == PlanCode.DIM_OUT_OF_RANGE
    assert under_caret(error) == "dim 1"
    assert '"h.0.up.bias" (32)' in error.message
    assert error.expected == "expected -1 to 0"


@pytest.mark.parametrize(
    ("statement", "role"),
    [
        ('shard "*.norm" columns over tp', "columns"),
        ('shard "*.norm" rows over tp', "rows"),
        ('shard "*.norm" vocab over tp', "vocab"),
        ('shard "embed" columns over tp', "columns"),
        ('shard "embed" rows over tp', "rows"),
    ],
)
def test_a_role_that_does_not_suit_the_parameter_says_to_use_a_dim(statement: str, role: str) -> None:
    error = refused(statement)
    assert error.code == PlanCode.UNSUITED_ROLE
    assert under_caret(error) == role
    assert error.expected == ("expected vocab or dim N" if "embed" in statement else "expected dim N")
    assert "dim 0 over tp" in error.help


@pytest.mark.parametrize("parameter", [info("a.weight", 2, 2, 2), info("a.scale", 2), info("a.bias")])
def test_a_linear_layers_other_parameters_have_no_role(parameter: ParameterInfo) -> None:
    with pytest.raises(PlanError) as caught:
        resolve_parameters(Plan.parse('mesh (tp=2)\nshard "a" columns over tp'), (parameter,))
    assert caught.value.code == PlanCode.UNSUITED_ROLE


def test_a_tied_parameter_is_matched_by_each_of_its_names() -> None:
    assert resolved('shard "head" vocab over tp') == resolved('shard "embed" vocab over tp')


def test_statements_that_agree_on_a_tied_parameter_are_fine() -> None:
    assert resolved('shard "embed" vocab over tp', 'shard "head" dim 0 over tp') == {"embed.weight": {"tp": 0}}


def test_statements_that_disagree_on_a_tied_parameter_name_both_places() -> None:
    error = refused('shard "embed" vocab over tp', 'shard "head" dim 1 over tp, dp')
    assert error.code == PlanCode.ALIASES_DISAGREE
    assert str(error.span) == "<plan>:3:1"
    assert [str(place) for _, place in error.notes] == ["<plan>:2:1"]
    assert "dim 1 over tp, dp" in error.message
    assert "dim 0 over tp" in error.message


def test_the_last_statement_about_both_names_of_a_tied_parameter_settles_it() -> None:
    statements = ('shard "embed" vocab over tp', 'shard "head" dim 1 over tp', 'shard "{embed,head}" vocab over dp')
    assert resolved(*statements) == {"embed.weight": {"dp": 0}}


def test_inputs_are_cut_by_batch_and_by_dim() -> None:
    plan = Plan.parse("mesh (dp=2, cp=2)\nshard inputs dim -1 over cp")
    shapes = {"ids": (8, 16), "scale": (), "lengths": (8,)}
    actual = resolve_inputs(plan, shapes, ("ids", "lengths"))
    assert actual == {"ids": {"dp": 0, "cp": 1}, "scale": {}, "lengths": {"dp": 0, "cp": 0}}


SHAPES = {"table": (8, 3), "ids": (8, 16), "scale": (), "lengths": (8,), "bias": (3, 3)}


@pytest.mark.parametrize(
    ("statements", "batch"),
    [
        ("", ("table", "ids", "lengths")),
        ('shard inputs "bias" whole', ("table", "ids", "lengths")),
        ('shard inputs "table" whole', ("ids", "lengths")),
        ('shard inputs "{ids,lengths}" batch over dp', ("ids", "lengths")),
        ('shard inputs "*" batch over dp\nshard inputs "table", "bias" whole', ("ids", "lengths")),
        ('shard inputs "table", "ids" whole', ("lengths",)),
    ],
)
def test_the_batch_is_what_statements_name_else_what_has_the_rows_of_the_first(
    statements: str, batch: tuple[str, ...]
) -> None:
    assert batch_inputs(Plan.parse(f"mesh (dp=2)\n{statements}"), SHAPES) == batch


def test_the_last_statement_that_names_an_input_decides_its_dim() -> None:
    plan = Plan.parse('mesh (dp=2)\nshard inputs batch over dp\nshard inputs "ids" dim 1 over dp')
    assert resolve_inputs(plan, {"ids": (8, 16), "x": (8,)}, ("ids", "x")) == {"ids": {"dp": 1}, "x": {"dp": 0}}


def test_statements_about_a_buffer_add_up_and_of_an_axis_the_last_one_decides() -> None:
    plan = Plan.parse(
        'mesh (dp=2, tp=2, cp=2)\nshard buffers "*" dim 0 over cp, tp\nshard buffers "*.keys" dim 1 over tp\n'
        'shard buffers "*.keys" dim 0 over dp'
    )
    shapes = {"cache.keys": (8, 4, 16), "cache.length": (8,)}
    found = resolve_buffers(plan, shapes)
    assert found == {"cache.keys": {"cp": 0, "tp": 1, "dp": 0}, "cache.length": {"cp": 0, "tp": 0}}
    assert [*found["cache.keys"]] == ["cp", "tp", "dp"], "the order in which axes nest"


def test_a_dim_that_no_input_has_is_refused() -> None:
    with pytest.raises(PlanError, match=r'inputs have no dim 2: even "ids" is \(8, 16\)') as caught:
        shapes = {"n": (8,), "ids": (8, 16)}
        resolve_inputs(Plan.parse("mesh (cp=2)\nshard inputs dim 2 over cp"), shapes, shapes)
    assert caught.value.code == PlanCode.DIM_OUT_OF_RANGE
    assert under_caret(caught.value) == "dim 2"


def test_activations_are_cut_by_tokens_before_the_hidden_dim() -> None:
    plan = Plan.parse("mesh (dp=2, tp=2)\nshard activations tokens over tp")
    assert resolve_activations(plan, 3) == {"tp": 1}
    assert resolve_activations(plan, 2) == {"tp": 0}


def test_a_dim_that_the_activations_lack_is_refused() -> None:
    with pytest.raises(PlanError, match="the activations have no dim 3") as caught:
        resolve_activations(Plan.parse("mesh (tp=2)\nshard activations dim 3 over tp"), 3)
    assert caught.value.code == PlanCode.DIM_OUT_OF_RANGE
    assert caught.value.expected == "expected -3 to 2"


def test_the_plan_language_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import stretto.dsl"
    subprocess.run([sys.executable, "-c", code], check=True)
