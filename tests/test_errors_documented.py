"""Every error code of the code has one line in docs/errors.md and a test that shows it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"\"(E\d{4})\"")
FOLDERS = (
    "backends", "costs", "diagnostics", "driver", "dsl", "frontend", "ir", "ops", "passes", "runtime", "schedules",
)  # fmt: skip


def sources() -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]


def raised() -> set[str]:
    """The codes in quotes anywhere in the package."""
    return {code for path in sources() for code in CODE.findall(path.read_text(encoding="utf-8"))}


def documented() -> list[str]:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (E\d{4}) \|", text, re.MULTILINE)


def test_the_documented_codes_are_those_of_the_code() -> None:
    codes = documented()
    assert len(codes) == len(set(codes)), "a code has two lines"
    assert raised() == set(codes)


def test_the_documented_codes_stand_in_order() -> None:
    assert documented() == sorted(documented())


def test_every_code_has_a_test() -> None:
    named = {
        name: code for path in sources() for name, code in re.findall(r"(\b[A-Z_]+) = \"(E\d{4})\"", path.read_text())
    }
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    shown = set(re.findall(r"E\d{4}", text)) | {code for name, code in named.items() if f".{name}" in text}
    assert sorted(raised() - shown) == []
