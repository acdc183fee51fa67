"""The wheel has every folder of the package, and the root has no Python file that is not the package's."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_PACKAGED = {"tests", "examples", "benchmarks", "docs", "build", "dist"}


def settings() -> dict[str, object]:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    found: dict[str, object] = tools["setuptools"]
    return found


def packaged(path: Path) -> bool:
    first = path.relative_to(ROOT).parts[0]
    return first not in NOT_PACKAGED and not first.startswith(".") and not first.endswith(".egg-info")


def folders_with(pattern: str) -> set[str]:
    """Dotted names of the folders of the package that have a file like this directly inside."""
    parents = {
        path.parent for path in ROOT.glob(f"*/**/{pattern}") if packaged(path) and "__pycache__" not in path.parts
    }
    return {".".join(["stretto", *parent.relative_to(ROOT).parts]) for parent in parents}


def test_every_folder_with_an_init_file_is_listed() -> None:
    assert folders_with("__init__.py") | {"stretto"} == set(settings()["packages"])  # type: ignore[call-overload]


def test_every_folder_with_python_files_has_an_init_file() -> None:
    assert folders_with("*.py") == folders_with("__init__.py")


def test_the_grammar_the_table_of_ops_and_the_type_marker_are_package_data() -> None:
    patterns = settings()["package-data"]["stretto"]  # type: ignore[index]
    data = {path for pattern in patterns for path in ROOT.glob(pattern)}
    assert {ROOT / "py.typed", ROOT / "ops" / "op_table.txt", *filter(packaged, ROOT.glob("*/**/*.lark"))} <= data


def test_the_root_holds_only_the_public_api_and_the_command() -> None:
    assert {path.name for path in ROOT.glob("*.py")} <= {"__init__.py", "__main__.py", "cli.py"}
