"""Print then parse gives the same plan; any text at all gives a plan or a PlanError, soon."""

import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from stretto.dsl import (
    Balance,
    Dim,
    FloatFormat,
    Mesh,
    Pipeline,
    Plan,
    PlanError,
    Precision,
    Role,
    ShardActivations,
    ShardInputs,
    ShardParameters,
    Statement,
    WrittenSchedule,
    match,
)
from stretto.dsl.globs import flaw

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True) | st.sampled_from(["dp", "over", "dim", "mesh"])
patterns = (st.text(alphabet="ab.*?[]!{},-#_ é", min_size=1, max_size=12) | st.text(max_size=8)).filter(
    lambda pattern: not flaw(pattern)
)
dims = st.builds(Dim, st.integers(-64, 63))
NAMES = ("mesh", "shard", "dp", "tp", "over", "dim", "columns", "tokens", "batch", "inputs", "activations", "é")
MORE = ("precision", "compute", "bf16", "}")
MARKS = ("(", ")", "=", ",", "2", "-1", "99999999999999", '"*.{q,k}_proj"', '"', "{", "# a", "\n", "\r\n", "\t", " ")
words = st.sampled_from((*NAMES, *MORE, *MARKS, "pipeline", "schedule", "microbatches", "times"))
ONE = "schedule mine(stages p, microbatches m) {\n  stage s {\n    drain { F B }\n  }\n}"


times = st.lists(st.floats(0.001, 1e9), min_size=3, max_size=4).map(tuple)


def pipelines(axis: str) -> st.SearchStrategy[Pipeline]:
    """Any pipeline over an axis that can be said."""
    return st.builds(
        Pipeline, st.just(axis), st.integers(1, 99), st.sampled_from(["1f1b", "zb-v", "mine", "over"]),
        st.none() | st.integers(1, 9), st.just(Balance.TIME), st.just(()) | st.lists(patterns, max_size=3).map(tuple),
        st.just(()) | times, st.none() | st.floats(0.001, 1e9), st.none() | st.sampled_from(FloatFormat), st.booleans(),
    )  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan that can be said; an axis stands in at most one statement about inputs or activations."""
    axes = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    mesh = Mesh(tuple((axis, draw(st.integers(1, 19))) for axis in axes))
    some = st.lists(st.sampled_from(axes), min_size=1, unique=True).map(tuple)
    roles = st.sampled_from([Role.COLUMNS, Role.ROWS, Role.VOCAB])
    several = st.lists(patterns, min_size=1, max_size=3).map(tuple)
    parameters = st.builds(ShardParameters, several, roles | dims, some)
    statements: list[Statement] = draw(st.lists(parameters, max_size=3))
    if draw(st.booleans()):
        statements.append(draw(st.builds(ShardInputs, st.just(Role.BATCH) | dims, some)))
    if draw(st.booleans()):
        named = st.builds(ShardInputs, st.just(Role.BATCH) | dims, some, patterns=several)
        statements.append(
            draw(
                named | st.builds(ShardInputs, st.sampled_from([Role.BATCH, Role.WHOLE]), st.just(()), patterns=several)
            )
        )
    if draw(st.booleans()):
        statements.append(draw(st.builds(ShardActivations, st.just(Role.TOKENS) | dims, some)))
    if draw(st.booleans()):
        formats = st.none() | st.sampled_from(FloatFormat)
        statements.append(draw(st.builds(Precision, st.sampled_from(FloatFormat), formats, formats)))
    if draw(st.booleans()):
        statements.append(draw(pipelines(draw(st.sampled_from(axes)))))
    if draw(st.booleans()):
        statements.append(WrittenSchedule.parse(ONE))
    try:
        return Plan(mesh, tuple(draw(st.permutations(statements))))
    except PlanError:  # the axis of the batch, or of the stages, cuts something else too
        assume(False)
        raise


@settings(max_examples=25, deadline=None)
@given(plans())
def test_print_then_parse_gives_an_equal_plan(plan: Plan) -> None:
    assert Plan.parse(str(plan)) == plan


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(plans())
def test_print_then_parse_gives_an_equal_plan_at_length(plan: Plan) -> None:
    assert Plan.parse(str(plan)) == plan


def ends_fast(text: str) -> None:
    """Parses, or raises PlanError with a place inside the text, in under a second of work."""
    start = time.process_time()
    try:
        plan = Plan.parse(text)
    except PlanError as error:
        assert error.span is not None
        assert 1 <= error.span.line <= text.count("\n") + 1
        assert str(error).startswith("<plan>:")
    else:
        assert Plan.parse(str(plan)) == plan
    assert time.process_time() - start < 1


@settings(max_examples=200, deadline=None)
@given(st.text())
@example("\r")
@example("mesh (\x85a=2)")
@example('mesh (a=2)\nshard "' + "{" * 490 + "}" * 490 + '" dim 0 over a')
@example('mesh (a=2)\nshard "' + "{a,b}" * 190 + '" dim 0 over a')
@example("mesh (" + "a=2," * 2000)
@example("mesh (a=2)\n" + "\n# x" * 5000 + "\nshard inputs dim 0 over a," * 3)
@example("9" * 100_000)
@example("mesh (a=2)\nschedule a" + "{ # }\n" * 20_000)
@example("mesh (a=2)\nschedule a" + "{}" * 50_000)
@example("mesh (a=2)\nschedule a{" + "{{}" * 30_000)
@example("mesh (a=2)\nschedule a{" + "{{}}" * 30_000)
@example("mesh (a=2)\n" + "schedule a {}\n" * 5_000)
@example('mesh (a=2)\nshard "' + "[{" * 50_000 + '" dim 0 over a')
def test_any_text_gives_a_plan_or_a_plan_error(text: str) -> None:
    ends_fast(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=30).map(" ".join))
def test_any_words_of_the_language_give_a_plan_or_a_plan_error(text: str) -> None:
    ends_fast(text)
    ends_fast("mesh (dp=2, tp=2)\nshard " + text)
    ends_fast("mesh (dp=2, tp=2)\npipeline over tp { " + text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab.*?[]!{},-&|~^\\", max_size=20), st.text(alphabet="ab.[-]", max_size=20))
def test_any_pattern_is_refused_or_can_be_matched(pattern: str, name: str) -> None:
    if not flaw(pattern):
        assert match(pattern, [name]) in ((), (name,))
