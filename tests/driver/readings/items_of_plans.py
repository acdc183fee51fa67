"""What a plan can say, as the grammar and the parser have it; and what docs/trust.md says that nothing reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import stretto.dsl
from stretto.diagnostics import StrettoError
from stretto.dsl import Plan

ROOT = Path(stretto.dsl.__file__).parents[1]
_RULE = re.compile(r"^(_?[a-z_]+):(.*(?:\n +\|.*)*)", re.MULTILINE)
_VALUE = re.compile(r"^([A-Z_]+): /", re.MULTILINE)
"""A terminal that stands for a choice of words."""
_HEADS = {
    "attention": "attention over a", "split": "split tokens into 2", "recompute": 'recompute "a"',
    "experts": 'experts "a" over a', "overlap": "overlap", "precision": "precision", "zero": "zero 1 over a",
    "pipeline": "pipeline over a",
}  # fmt: skip
"""By keyword, what stands before the braces of a statement."""


def items() -> Iterator[str]:
    """All items: keyword and item, or keyword and the terminal of a value outside of braces."""
    grammar = (ROOT / "dsl" / "plan.lark").read_text(encoding="utf-8")
    rules = dict(_RULE.findall(grammar))
    values = {*_VALUE.findall(grammar)} - {"_NL", "BLANK", "COMMENT"}
    for keyword in re.findall(r"[a-z]+", rules["_statement"]):
        words = _words(rules, keyword)
        yield from (f"{keyword} {word}" for word in sorted(words & values))
        if words & {"{"}:
            yield from (f"{keyword} {item}" for item in _in_braces(keyword))


def _words(rules: dict[str, str], rule: str) -> set[str]:
    """The terminals that a rule holds, but for those in braces, and "{" where it has some."""
    found = set()
    text = re.sub(r'\("?\{?[^()]*RBRACE\)\?|"\{"[^|]*RBRACE', ' "{" ', rules[rule])
    for word in re.findall(r'[A-Za-z_]+|"\{"', re.sub(r'"[a-z,=()]+"', "", text)):
        found |= {"{"} if word == '"{"' else _words(rules, word) if word in rules else {word}
    return found


def _in_braces(keyword: str) -> list[str]:
    """The items that the parser knows, which it lists where it refuses another."""
    try:
        Plan.parse(f"mesh (a=2)\n{_HEADS[keyword]} {{ nothing fp32 }}")
    except StrettoError as error:
        return [word for word in re.findall(r"[a-z_]+", error.expected) if word not in ("expected", "or")]
    raise AssertionError(f"{keyword} takes any item")


def unread() -> dict[str, str]:
    """By item: why docs/trust.md says that nothing reads it."""
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    table = page.partition("### Items of plans that nothing reads\n")[2].partition("\n#")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return {item: row[1].strip() for row in rows for item in re.findall(r"`([^`]+)`", row[0])}
