"""`stretto zoo`: rows are found, read, checked and listed; every row of the zoo passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stretto.driver.zoo import headlines
from stretto.driver.zoo.headline_file import Run, read_headline
from stretto.driver.zoo.rows import SECTIONS, ZOO, find_rows

from ..subsets import only
from .conftest import Command

ROOT = Path(__file__).parents[2]
ROWS = [row.name for row in find_rows()]
QUICK = ["fsdp", "gpipe", "zero-bubble"]
"""Two ranks and a stack of MLPs each."""


@pytest.mark.parametrize("name", only(QUICK, ROWS))
def test_a_row_passes_all_checks(stretto: Command, name: str) -> None:
    done = stretto("zoo", name, "--json")
    assert done.code == 0, done.err
    [row] = json.loads(done.out)["rows"]
    assert row["verdict"] == "passed" and row["ranks"] >= 2
    assert row["passes"]["passed"] and row["program"]["verdict"] == "safe" and row["check"]["result"] == "passed"
    assert row["check"]["tensors"]["equal"] > 10


def test_the_page_on_the_zoo_is_what_the_command_prints(stretto: Command) -> None:
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert stretto("zoo", "--markdown").out == page


@pytest.mark.parametrize("name", ROWS)
def test_a_plan_of_the_zoo_has_10_to_30_lines(name: str) -> None:
    [row] = find_rows([name])
    assert 10 <= len(row.plan.read_text(encoding="utf-8").splitlines()) <= 30


def copied(name: str, to: Path) -> Path:
    """The folder of a zoo that has this row alone."""
    shutil.copytree(ZOO / name, to / name)
    return to


WRONG = """import torch
from torch import nn

class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).sum() if x.sum() > 0 else x.sum()

def model():
    return Wrong(), {"x": torch.ones(4, 4)}
"""


def test_a_row_that_is_refused_fails_and_its_error_is_shown(stretto: Command, tmp_path: Path) -> None:
    zoo = copied("gpipe", tmp_path)
    (zoo / "gpipe" / "target.py").write_text(WRONG)
    done = stretto("zoo", "--folder", zoo)
    assert done.code == 1
    header, row, *rest = done.out.splitlines()
    assert header.split() == ["row", "ranks", "passes", "order", "values", "eager", "verdict", "seconds"]
    assert row.split()[:2] == ["gpipe", "failed"]
    assert any("error[E" in line for line in rest) and rest[-1] == "0 of 1 row passed"
    [found] = json.loads(stretto("zoo", "--folder", zoo, "--json").out)["rows"]
    assert found["verdict"] == "failed" and found["error"]["code"].startswith("E")


def test_an_unknown_row_is_refused_with_the_nearest(stretto: Command) -> None:
    done = stretto("zoo", "gpip")
    assert done.code == 1
    assert 'error[E0511]: the zoo has no row "gpip"' in done.err and 'did you mean "gpipe"?' in done.err


def test_a_folder_without_rows_is_no_zoo(stretto: Command, tmp_path: Path) -> None:
    assert f'error[E0510]: there is no zoo in "{tmp_path}"' in stretto("zoo", "--folder", tmp_path).err
    (tmp_path / "zoos").mkdir()
    done = stretto("zoo", "--folder", tmp_path / "zoo")
    assert done.code == 1 and f'did you mean "{tmp_path / "zoos"}"?' in done.err


def test_an_installed_package_without_a_zoo_says_where_one_is(
    stretto: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stretto.driver.zoo.rows.ZOO", tmp_path / "none")
    done = stretto("zoo")
    assert done.code == 1
    assert "error[E0510]" in done.err and "give the folder with --folder DIR" in done.err


def test_a_row_without_its_plan_or_a_section_is_refused(stretto: Command, tmp_path: Path) -> None:
    zoo = copied("gpipe", tmp_path)
    readme = zoo / "gpipe" / "README.md"
    whole = readme.read_text(encoding="utf-8")
    readme.write_text(whole.replace("## Left out", "## Missing"))
    error = stretto("zoo", "--folder", zoo).err
    assert "error[E0512]" in error and "What the plan says, Missing," in error and SECTIONS[2] in error
    readme.write_text(whole)
    (zoo / "gpipe" / "gpipe.plan").unlink()
    assert 'the row "gpipe" of the zoo has no file "gpipe.plan"' in stretto("zoo", "--folder", zoo).err


def test_the_package_ships_the_zoo_and_the_models_that_it_imports() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"examples/zoo/*/*"' in settings
    imported = {name for name in ("gpt", "mlp") if any(f"examples/{name}.py" in t.read_text() for t in targets())}
    assert imported and all(f'"examples/{name}.py"' in settings for name in imported)


def targets() -> list[Path]:
    return sorted(ZOO.glob("*/target.py"))


MODEL = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4096, 4096)

    def forward(self, x):
        return self.layer(x).square().mean()

def linear():
    return Linear(), {"x": torch.zeros(8192, 4096)}
"""
HEADLINE = """
source = "nobody"
cluster = 'cluster { nodes 1  gpus 8  gpu "A100-SXM-80GB"  network 25GB/s }'
[[points]]
name = "four ranks over one"
figure = "gain"
published = 2.5
target = "headline.py:linear"
plan = "mesh (dp=4)"
over = { plan = "mesh (dp=1)" }
[[points]]
name = "one rank"
figure = "seconds"
published = 60.0
target = "headline.py:linear"
plan = "mesh (dp=1)"
cause = "nobody measured it"
"""


def test_published_figures_stand_beside_simulated_ones(stretto: Command, tmp_path: Path) -> None:
    zoo = copied("gpipe", tmp_path)
    (zoo / "gpipe" / "headline.py").write_text(MODEL)
    (zoo / "gpipe" / "headline.toml").write_text(HEADLINE)
    done = stretto("zoo", "--simulate", "--folder", zoo, "--json")
    assert done.code == 0, done.err
    gain, time = json.loads(done.out)["points"]
    assert gain["figure"] == "gain" and 1.0 < gain["simulated"] < 3.0  # four ranks share rows, and all-reduce gradients
    assert gain["meets"] == (abs(gain["simulated"] - 2.5) <= 2.5 / 4)
    assert 0 < time["simulated"] < 0.1 and not time["meets"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('figure = "gain"', 'figure = "speed"', 'the figure is "speed", not one of gain, seconds and tflops'),
        ('over = { plan = "mesh (dp=1)" }', "", "a gain says what it is over"),
        ("published = 60.0", 'published = "60"', "\"published\" is '60'"),
        ('name = "one rank"', 'title = "one rank"', 'there is no item "title"'),
        ("[[points]]", "[[point]]", 'there is no item "point"'),
        ('source = "nobody"', "source = nobody", "cannot read"),
        ('cause = "nobody', 'rounds = [8, 16, 4]\ncause = "nobody', '"rounds" has two numbers'),
        ('cause = "nobody', 'rounds = [8, 16, 32]\ncause = "nobody', "the plan says $microbatches"),
        ('figure = "seconds"', 'figure = "tflops"', 'says its count of operations as "tera"'),
    ],
)
def test_a_headline_that_cannot_be_read_is_refused(
    stretto: Command, tmp_path: Path, old: str, new: str, problem: str
) -> None:
    zoo = copied("gpipe", tmp_path)
    assert old in HEADLINE
    (zoo / "gpipe" / "headline.toml").write_text(HEADLINE.replace(old, new))
    done = stretto("zoo", "--simulate", "--folder", zoo)
    assert done.code == 1 and "error[E0513]" in done.err and problem in done.err


def test_rows_without_published_runs_are_refused_and_those_of_the_zoo_are_read(
    stretto: Command, tmp_path: Path
) -> None:
    done = stretto("zoo", "gpipe", "--simulate")
    assert done.code == 1 and "no published run of gpipe is described" in done.err
    read = [headline for row in find_rows() if (headline := read_headline(row))]
    assert sum(len(headline.points) for headline in read) >= 12 and all(headline.source for headline in read)
    assert stretto("zoo", "--markdown", "--simulate").code == 2


def test_microbatches_beyond_those_simulated_take_as_long_as_the_last_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def simulated(row: object, run: object, plan: str, cluster: object, share: float) -> float:
        calls.append((plan, share))
        return {"m 16": 3.0, "m 24": 4.0}[plan]

    monkeypatch.setattr(headlines, "_simulated", simulated)
    run = Run("headline.py:gpt", "m $microbatches", rounds=(16, 24, 128))
    assert headlines._seconds(None, run, None) == pytest.approx(3.0 + 112 / 8)  # type: ignore[arg-type]
    assert calls == [("m 16", 0.125), ("m 24", 0.1875)]
