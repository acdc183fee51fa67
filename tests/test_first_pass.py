"""The tutorial's pass, typed in as written, is found, tested, refuted, mended, and moved into Stretto."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from stretto.driver.text import pass_document
from stretto.passes import registry

from .typing_in import Block, blocks, type_in, working_in

PAGE = Path(__file__).parents[1] / "docs" / "first-pass.md"
SECTIONS = ("The pass", "Registering it", "A text test", "Is it right?")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, in which one works."""
    monkeypatch.setenv("STRETTO", str(PAGE.parents[1]))
    with working_in(tmp_path, monkeypatch):
        yield tmp_path


def typed(folder: Path, *sections: str) -> list[Block]:
    """Type in sections of the page; their blocks."""
    found = [each for section in sections for each in blocks(PAGE, section)]
    for each in found:
        type_in(each, folder)
    return found


def test_the_pass_is_written_registered_tested_and_mended(folder: Path) -> None:
    done = typed(folder, *SECTIONS)
    assert len(done) >= 10
    (toml,) = [tomllib.loads(each.text) for each in done if each.language == "toml"]
    points = (folder / "drop_unit_factors-0.1.dist-info" / "entry_points.txt").read_text()
    ((name, target),) = toml["project"]["entry-points"]["stretto.passes"].items()
    assert f"{name} = {target}\n" in points


@pytest.mark.slow
def test_it_fires_in_a_real_model(folder: Path) -> None:
    pytest.importorskip("transformers")
    typed(folder, *SECTIONS, "On a real model")


def test_moved_into_stretto_it_is_a_pass_like_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(folder, *SECTIONS)
    (sed,) = [line.strip() for line in PAGE.read_text().splitlines() if line.strip().startswith("sed ")]
    moved = folder / "moved.py"
    subprocess.run(["bash", "-euc", f"{sed.split(' > ')[0]} > {moved}"], cwd=folder, check=True)
    spec = importlib.util.spec_from_file_location("stretto.passes.normalize.drop_unit_factors", moved)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    place = "normalize.drop_unit_factors:DropUnitFactors"
    assert f'"drop-unit-factors": "{place}",' in PAGE.read_text()
    monkeypatch.setitem(registry.TABLE, "drop-unit-factors", place)
    tests = folder / "tests"
    (tests / "normalize").mkdir(parents=True)
    shutil.copy(folder / "drop_unit_factors.mlir", tests / "normalize")
    monkeypatch.setattr(pass_document, "TEXT_TESTS", tests)
    shown = pass_document.example("drop-unit-factors")
    assert "aten.mul_scalar" in shown.before and "aten.mul_scalar" not in shown.after
