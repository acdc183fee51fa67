"""Imports go one way: which folder may import which, as docs/architecture.md lists them; and rooms stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "diagnostics": set(),
    "ops": {"diagnostics"},
    "dsl": {"diagnostics"},
    "schedules": {"diagnostics", "dsl"},
    "runtime": {"diagnostics", "ops"},
    "ir": {"diagnostics", "dsl", "ops"},
    "costs": {"diagnostics", "dsl", "ir"},
    "frontend": {"diagnostics", "dsl", "ir", "ops"},
    "passes": {"diagnostics", "dsl", "schedules", "ir", "costs", "ops"},
    "backends": {"diagnostics", "dsl", "ir", "costs", "runtime"},
    "driver": {
        "diagnostics",
        "ops",
        "dsl",
        "schedules",
        "ir",
        "costs",
        "frontend",
        "passes",
        "backends",
        "runtime",
        ".",
    },
}
"""The folders that a folder may import beside itself; "." is the root, of which only the version is taken."""

COMPILER_ONLY = {"torch_mlir", "lark", "networkx", "transformers"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, also under TYPE_CHECKING and in functions."""
    package = ["stretto", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def folder_of(name: str) -> str | None:
    """The folder of ours that a dotted name is in; "." for the root; None for other packages."""
    parts = name.split(".")
    if parts[0] != "stretto":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "."


def test_every_folder_of_the_package_has_its_row() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder, None}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in modules(folder)
        for line, name in imports(file)
        if folder_of(name) not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["diagnostics", "ops", "runtime"])
def test_what_runs_a_program_imports_nothing_of_the_compiler(folder: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in modules(folder)
        for line, name in imports(file)
        if name.split(".")[0] in COMPILER_ONLY
    ]
    assert not wrong


def test_the_interpreter_of_programs_shares_only_records_with_the_runtime() -> None:
    """Else a fault of the executor, of its generator or of validation would be on both sides of a comparison."""
    of_runtime = {
        name.rpartition(".")[0]
        for file in modules("backends/interpreter")
        for _, name in imports(file)
        if folder_of(name) == "runtime"
    }
    assert of_runtime == {"stretto.runtime.program.records", "stretto.runtime.program.arguments"}


def test_imports_inside_the_package_are_relative() -> None:
    files = [file for folder in MAY_IMPORT for file in modules(folder)] + sorted(ROOT.glob("*.py"))
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "stretto"
    ]
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    files = [file for folder in MAY_IMPORT for file in modules(folder)] + sorted(ROOT.glob("*.py"))
    names = {dotted(file): file for file in files}
    graph: nx.DiGraph[str] = nx.DiGraph()
    for name, file in names.items():
        targets = {next((n for n in (full, full.rpartition(".")[0]) if n in names), name) for _, full in imports(file)}
        graph.add_edges_from((name, target) for target in targets - {name, "stretto"})
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


@pytest.mark.parametrize("folder", ["passes", "runtime", "ir", "frontend", "schedules", "driver"])
def test_rooms_of_one_folder_do_not_import_each_other_in_circles(folder: str) -> None:
    """A room and its parent or its subroom do not count."""
    rooms = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    graph: nx.DiGraph[str] = nx.DiGraph()
    for file in modules(folder):
        room = file.relative_to(ROOT / folder).parts[0]
        parts = [name.split(".") for _, name in imports(file)]
        targets = {p[2] for p in parts if p[:2] == ["stretto", folder] and len(p) > 2}
        graph.add_edges_from((room, target) for target in targets & rooms - {room} if room in rooms)
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_a_room_holds_at_most_20_files_of_at_most_400_lines() -> None:
    rooms = {path.parent for folder in MAY_IMPORT for path in (ROOT / folder).rglob("__init__.py")}
    full = [str(room.relative_to(ROOT)) for room in rooms if len(set(room.glob("*.py")) - {room / "__init__.py"}) > 20]
    files = [file for folder in MAY_IMPORT for file in modules(folder)]
    long = [str(file.relative_to(ROOT)) for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 400]
    assert (full, long) == ([], [])


def dotted(file: Path) -> str:
    """The name under which a file of the package is imported."""
    parts = ["stretto", *file.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
