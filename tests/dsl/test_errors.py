"""Every mistake that a plan's text alone can show: its code, what the carets stand under, and the way out."""

import pytest
from stretto.dsl import Plan, PlanCode, PlanError
from stretto.dsl.parser import READERS, grammar
from stretto.dsl.syntax import KEYWORDS, STATEMENTS, WORDS

KINDS = "mesh, axes, shard, store, zero, attention, recompute, split, experts, overlap, precision, pipeline or schedule"
"""The kinds of statements, as messages list them."""


def refused(text: str) -> PlanError:
    """The error that a plan of this text raises."""
    with pytest.raises(PlanError) as caught:
        Plan.parse(text, "gpt.plan")
    return caught.value


def refused_at(marked: str) -> PlanError:
    """The error of a plan, which must point at what stands between the two marks « and »."""
    before, remainder = marked.split("«")
    inside, after = remainder.split("»")
    error = refused(before + inside + after)
    column = len(before) - before.rfind("\n")
    assert error.span is not None
    assert (error.span.line, error.span.column) == (before.count("\n") + 1, column), error
    assert error.span.length == max(1, len(inside)), error
    return error


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("mesh «dp»=2", 'expected "("'),
        ("mesh («)»", "expected a mesh axis"),
        ("mesh (dp «2»)", 'expected "="'),
        ("mesh (dp=«two»)", "expected a number"),
        ("mesh (dp=2 «tp»=2)", 'expected ")" or ","'),
        ("mesh (dp=2«»", 'expected ")"'),
        ("mesh (dp=2,«»\n\n", "expected a mesh axis"),
        ('mesh (dp=2) «shard» "a" dim 0 over dp', "expected the end of the line"),
        ("mesh (dp=2)\nshard«»", "expected activations, inputs, buffers or a pattern in quotes"),
        ('mesh (dp=2)\nshard "a" columns over«»  # dp', "expected a mesh axis"),
        ('mesh (dp=2)\nshard "a#b",«» # more\n # end\n\n', "expected a pattern in quotes"),
        ('mesh (dp=2)\nshard "a" «over» dp', 'expected ",", a role such as columns or dim N'),
        ('mesh (dp=2)\nshard "a" dim «over» dp', "expected a number"),
        ('mesh (dp=2)\nshard "a" columns «"over"» dp', 'expected "over"'),
        ("mesh (dp=2)\nprecision «compute» bf16", 'expected "{"'),
        ("mesh (dp=2)\nprecision {«}»", "expected params, compute or reduce"),
        ("mesh (dp=2)\nprecision { compute «}»", "expected a format such as bf16"),
        ("mesh (dp=2)\nprecision { compute bf16«»", 'expected "}", params, compute or reduce'),
        (
            "mesh (dp=2)\n«=» 3",
            f"expected a statement ({KINDS})",
        ),
        (
            'mesh (dp=2)\n«"a"» columns over dp',
            f"expected a statement ({KINDS})",
        ),
    ],
)
def test_a_syntax_error_says_what_was_expected_in_words(marked: str, expected: str) -> None:
    error = refused_at(marked)
    assert (error.code, error.expected) == (PlanCode.SYNTAX, expected)


def test_a_misspelt_word_inside_a_statement_is_offered() -> None:
    error = refused_at('mesh (dp=2)\nshard "a" columns «ovr» dp')
    assert (error.code, error.help) == (PlanCode.SYNTAX, 'did you mean "over"?')


@pytest.mark.parametrize("char", ["*", "'", ".", "\u201c"])
def test_a_pattern_without_double_quotes_says_how_to_quote(char: str) -> None:
    error = refused_at(f"mesh (dp=2)\nshard «{char}»_proj columns over dp")
    assert error.code == PlanCode.STRAY_CHARACTER
    assert "double quotes" in error.help


@pytest.mark.parametrize(("char", "shown"), [(":", '":"'), ("\0", "U+0000"), ("\xa0", "U+00A0"), ("é", '"é"')])
def test_a_stray_character_is_named(char: str, shown: str) -> None:
    error = refused_at(f"mesh (dp«{char}»2)")
    assert error.code == PlanCode.STRAY_CHARACTER
    assert shown in error.message
    assert error.expected == 'expected "="'


def test_an_open_string_is_marked_to_the_end_of_its_line() -> None:
    assert refused_at('mesh (dp=2)\nshard «"a columns over dp»\nshard').code == PlanCode.UNTERMINATED


def test_an_unknown_statement_offers_the_nearest() -> None:
    error = refused_at("mesh (dp=2)\n«Shrad» inputs batch over dp")
    assert (error.code, error.help) == (PlanCode.UNKNOWN_STATEMENT, 'did you mean "shard"?')


def test_a_statement_that_is_not_there_yet_is_unknown() -> None:
    error = refused_at("mesh (dp=2)\n«offload» 1 over dp")
    assert error.code == PlanCode.UNKNOWN_STATEMENT
    assert error.expected == f"expected {KINDS}"


def test_an_unknown_thing_to_shard_offers_the_nearest() -> None:
    error = refused_at("mesh (tp=2)\nshard «activation» tokens over tp")
    assert (error.code, error.help) == (PlanCode.UNKNOWN_SUBJECT, 'did you mean "activations"?')


def test_a_bare_name_to_shard_is_offered_in_quotes() -> None:
    error = refused_at("mesh (tp=2)\nshard «lm_head» vocab over tp")
    assert (error.code, error.help) == (PlanCode.UNKNOWN_SUBJECT, 'for parameters by name, write "lm_head" in quotes')


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ('shard "a" «colums» over tp', "expected columns, rows, vocab or dim N"),
        ('shard "a" «tokens» over tp', "expected columns, rows, vocab or dim N"),
        ("shard activations «batch» over tp", "expected tokens or dim N"),
        ("shard inputs «rows» over tp", "expected batch, whole or dim N"),
        ('shard inputs "x" «rows» over tp', "expected batch, whole or dim N"),
    ],
)
def test_a_role_that_a_subject_lacks_is_refused(marked: str, expected: str) -> None:
    error = refused_at(f"mesh (tp=2)\n{marked}")
    assert (error.code, error.expected) == (PlanCode.UNKNOWN_ROLE, expected)


@pytest.mark.parametrize("marked", ["shard inputs «whole» over tp", 'shard inputs "x" «whole» over tp'])
def test_only_named_inputs_are_whole_and_on_every_axis(marked: str) -> None:
    error = refused_at(f"mesh (tp=2)\n{marked}")
    assert (error.code, error.help) == (PlanCode.UNKNOWN_ROLE, 'write, for example: shard inputs "table" whole')


def test_activations_have_no_names() -> None:
    error = refused_at('mesh (tp=2)\nshard activations «"x"» tokens over tp')
    assert (error.code, error.expected) == (PlanCode.SYNTAX, "expected tokens or dim N: activations have no names")


def test_a_dim_of_a_named_input_needs_an_axis() -> None:
    assert "has no axis" in refused('mesh (tp=2)\nshard inputs "x" dim 1').message


def test_a_misspelt_role_offers_the_nearest() -> None:
    assert refused('mesh (tp=2)\nshard "a" colums over tp').help == 'did you mean "columns"?'


def test_an_unknown_axis_names_the_mesh_and_the_nearest() -> None:
    error = refused_at("mesh (dp=2, tensor=2)\nshard inputs batch over dp, «tenser»")
    assert (error.code, error.expected) == (PlanCode.UNKNOWN_AXIS, "expected dp or tensor")
    assert error.help == 'did you mean "tensor"?'
    assert [str(place) for _, place in error.notes] == ["gpt.plan:1:1"]


@pytest.mark.parametrize(
    "marked",
    [
        "mesh («dp=0»)",
        "mesh (tp=2, «dp=-1»)",
        "mesh («dp=1000001»)",
        f"mesh («dp={'9' * 5000}»)",
        "mesh (a=1, b=1, c=1, d=1, e=1, f=1, g=1, h=1, «i=1», j=1)",
    ],
)
def test_a_mesh_with_bad_sizes_or_too_many_axes_is_refused(marked: str) -> None:
    assert refused_at(marked).code == PlanCode.BAD_MESH


def test_an_axis_declared_twice_points_at_both() -> None:
    error = refused_at("mesh (dp=2, «dp=2»)")
    assert error.code == PlanCode.DUPLICATE_AXIS
    assert [str(place) for _, place in error.notes] == ["gpt.plan:1:7"]


def test_a_second_mesh_points_at_both() -> None:
    error = refused_at("mesh (dp=2)\n\n«mesh (tp=2)» # again")
    assert error.code == PlanCode.DUPLICATE_MESH
    assert [str(place) for _, place in error.notes] == ["gpt.plan:1:1"]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing", 'shard "a" rows over tp'])
def test_a_plan_without_a_mesh_says_which_line_to_add(text: str) -> None:
    error = refused(text)
    assert (error.code, error.help) == (PlanCode.NO_MESH, "add a line such as: mesh (dp=2, tp=2)")
    assert str(error.span) == "gpt.plan:1:1"


@pytest.mark.parametrize(
    ("marked", "first"),
    [
        ('mesh (dp=2, tp=2)\nshard "a" rows over tp, dp, «tp»', None),
        ("mesh (dp=2, tp=2)\nshard inputs batch over dp\nshard inputs dim 1 over tp, «dp»", "gpt.plan:2:25"),
        ("mesh (tp=2)\nshard activations dim 2 over tp\nshard activations tokens over «tp»", "gpt.plan:2:30"),
        ("mesh (dp=2)\nshard activations tokens over «dp»", "gpt.plan:1:7"),
        ("mesh (d=2)\nshard inputs batch over d\nshard activations tokens over «d»", "gpt.plan:2:25"),
    ],
)
def test_an_axis_used_twice_on_one_tensor_is_refused(marked: str, first: str | None) -> None:
    error = refused_at(marked)
    assert error.code == PlanCode.AXIS_USED_TWICE
    assert [str(place) for _, place in error.notes] == ([first] if first else [])


def test_statements_about_different_parameters_may_use_one_axis() -> None:
    plan = Plan.parse(
        'mesh (tp=2)\nshard "a" rows over tp\nshard "b" columns over tp\nshard activations tokens over tp'
    )
    assert len(plan.statements) == 3


@pytest.mark.parametrize("pattern", ["", "{a", "a}", "{a,{b}", "[a", "{a,b}" * 12, "a" * 1001])
def test_a_pattern_that_cannot_be_read_is_marked(pattern: str) -> None:
    assert refused_at(f'mesh (tp=2)\nshard "ok", «"{pattern}"» rows over tp').code == PlanCode.BAD_PATTERN


@pytest.mark.parametrize("number", ["64", "-65", "9" * 5000])
def test_a_dim_that_no_tensor_has_is_refused(number: str) -> None:
    error = refused_at(f'mesh (tp=2)\nshard "a" «dim {number}» over tp')
    assert (error.code, error.expected) == (PlanCode.DIM_OUT_OF_RANGE, "expected -64 to 63")


def test_the_caret_stands_under_its_word_after_tabs() -> None:
    lines = str(refused("mesh (tp=2)\n\tshard\t\x1binputs")).splitlines()
    assert lines[1].index("shard") == lines[1].index("|") + 3
    assert lines[2].index("^") == lines[1].index("inputs") - 1
    assert "\x1b" not in lines[1]


def test_an_error_shows_place_line_caret_and_help() -> None:
    assert str(refused('mesh (tp=2)\nshard "a" colums over tp')) == (
        'gpt.plan:2:11: error[E0106]: parameters have no role "colums"\n'
        '    2 | shard "a" colums over tp\n'
        "      |           ^^^^^^ expected columns, rows, vocab or dim N\n"
        'help: did you mean "columns"?'
    )


def test_every_terminal_of_the_grammar_has_words() -> None:
    unseen = {"COMMENT", "BLANK", "_BREAK"}
    assert {terminal.name for terminal in grammar().terminals} - unseen == {*WORDS, *STATEMENTS}
    assert set(KEYWORDS) <= set(WORDS)
    assert set(STATEMENTS.values()) == set(READERS)
