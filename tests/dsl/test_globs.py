"""Which names a glob matches, and which globs are offered for one that matches none."""

import pytest
from stretto.dsl import match
from stretto.dsl.globs import expand, flaw, nearest_patterns

NAMES = ("wte", "h.0.attn.q_proj", "h.0.attn.k_proj", "h.10.mlp.up", "h.10.mlp.up.weight")


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("wte", ("wte",)),
        ("WTE", ()),
        ("w", ()),
        ("*", NAMES),
        ("h.*_proj", ("h.0.attn.q_proj", "h.0.attn.k_proj")),
        ("*.{q,v}_proj", ("h.0.attn.q_proj",)),
        ("h.[0-9].*", ("h.0.attn.q_proj", "h.0.attn.k_proj")),
        ("h.[!0-9]*", ()),
        ("h.??.mlp.up", ("h.10.mlp.up",)),
        ("*.up{,.weight}", ("h.10.mlp.up", "h.10.mlp.up.weight")),
        ("{wte,h.0.{attn.{q,k},mlp}_proj}", ("wte", "h.0.attn.q_proj", "h.0.attn.k_proj")),
    ],
)
def test_a_glob_matches_whole_names(pattern: str, matched: tuple[str, ...]) -> None:
    assert match(pattern, NAMES) == matched


def test_braces_expand_in_order_and_without_repeats() -> None:
    assert expand("{a,b}{c,c}") == ("ac", "bc")
    assert expand("{a}") == ("a",)


def test_braces_that_stand_for_too_much_are_refused_at_once() -> None:
    assert "more than 1000" in flaw("{a,b}" * 100)


def test_many_stars_do_not_take_long() -> None:
    assert match("*a" * 200 + "b", ["a" * 500]) == ()


@pytest.mark.parametrize("pattern", ["a", "*", "{a,b}", "[ab]", "[]]", "[!]]", "a]"])
def test_a_glob_that_can_be_read_has_no_flaw(pattern: str) -> None:
    assert flaw(pattern) == ""


def test_the_nearest_pattern_keeps_its_star_and_matches() -> None:
    names = [f"model.layers.{layer}.attn.{part}_proj" for layer in range(20) for part in "qkv"] + ["lm_head"]
    offered = nearest_patterns("*.q_prj", names)
    assert offered[0] == "*.q_proj"
    assert all(match(pattern, names) for pattern in offered)
    assert nearest_patterns("lmhead", names) == ("lm_head",)
    layers = [f"blocks.{index}.mix.fc1" for index in range(3)]
    assert nearest_patterns("block.*.mix.fc1", layers) == ("blocks.*.mix.fc1",)
    assert nearest_patterns("block.1.mix.fc1", layers)[0] == "blocks.1.mix.fc1"
    assert nearest_patterns("*.attn.q_pro", names)[0] == "*.attn.q_proj"


def test_nothing_is_offered_where_nothing_is_near() -> None:
    assert nearest_patterns("*.experts", ["lm_head", "wte"]) == ()
