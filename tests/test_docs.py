"""README and docs/ show what is there: links lead somewhere, plans are plans, README's example is the file."""

import re
from pathlib import Path

import pytest
from stretto import Plan

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_readme_shows_the_plan_that_its_command_uses() -> None:
    (plan,) = blocks(ROOT / "README.md", "plan")
    assert plan == (ROOT / "examples" / "plans" / "dp_tp.plan").read_text(encoding="utf-8")


@pytest.mark.parametrize("plan", sorted(ROOT.glob("examples/**/*.plan")), ids=lambda plan: plan.stem)
def test_every_plan_of_the_examples_is_one(plan: Path) -> None:
    assert Plan.parse(str(Plan.load(plan))) == Plan.load(plan)


def test_readme_has_the_two_commands_that_ci_runs() -> None:
    start, tests = blocks(ROOT / "README.md", "sh")
    assert "examples/train_gpt.py" in start
    assert tests.rstrip().endswith("&& pytest")
    assert len(blocks(ROOT / "README.md", "text")) == 1
    assert blocks(ROOT / "CONTRIBUTING.md", "sh") == [tests]


def test_architecture_names_every_folder_of_the_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(f"`{path.parent.name}/`" in text for path in ROOT.glob("*/__init__.py"))


def test_readme_maps_every_room() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| [`")}
    for path in ROOT.glob("*/__init__.py"):
        rooms = {room.parent.name for room in path.parent.glob("*/__init__.py")}
        assert rooms <= set(rows[f"{path.parent.name}/"].split("`")), path.parent.name


def test_architecture_names_only_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([a-z_./]+\.(?:py|lark))`", text))
    rooms = [path.parent for path in ROOT.glob("*/**/__init__.py")]
    missing = [name for name in names if not any((folder / name).exists() for folder in (ROOT, *rooms))]
    assert not missing


def test_decisions_are_numbered_in_a_row() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    titles = [page.read_text(encoding="utf-8").splitlines()[0] for page in pages]
    assert all(title.startswith(f"# {int(page.name[:4])}. ") for title, page in zip(titles, pages, strict=True))
