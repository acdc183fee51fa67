"""The docs say what the code does: every code has its line, and every example is a plan."""

import re
from pathlib import Path

from stretto.dsl import Plan, PlanCode

DOCS = Path(__file__).parents[2] / "docs"


def rows(file: str, heading: str) -> list[tuple[str, str]]:
    """Code and meaning of each row of the table under a heading."""
    section = (DOCS / file).read_text(encoding="utf-8").split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| (E\d{4}) \| (.+) \|$", section, re.MULTILINE)


def test_the_list_of_errors_has_every_code_of_a_plan_once() -> None:
    assert [code for code, _ in rows("errors.md", "## Plans")] == list(PlanCode)


def test_the_language_reference_has_the_same_lines() -> None:
    assert rows("plan-language.md", "## Errors") == rows("errors.md", "## Plans")


def test_every_example_in_the_language_reference_is_a_plan() -> None:
    examples = re.findall(r"^```plan\n(.*?)^```$", (DOCS / "plan-language.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(examples) >= 5
    for example in examples:
        plan = Plan.parse(example)
        assert Plan.parse(str(plan)) == plan
