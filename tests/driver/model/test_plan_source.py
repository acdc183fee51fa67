"""The ways to pass a plan, and what is imported for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import stretto
from stretto.driver.model.plan_source import find_plan
from torch import nn

from ..models import GPT, TP

HERE = Path(__file__).parents[1]


def test_a_plan_is_a_path_a_text_or_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stretto.Plan.parse(TP)
    path = tmp_path / "my (new).plan"
    path.write_text(TP)
    monkeypatch.chdir(tmp_path)
    for source in (expected, TP, path, str(path), "my (new).plan"):
        assert find_plan(source) == expected
    assert find_plan("mesh (dp=2)").mesh.size == 2


def test_a_relative_path_counts_from_the_working_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = find_plan("gpt.plan", HERE)
    assert beside.mesh.size == 4 and beside.file == str(HERE / "gpt.plan")
    (tmp_path / "gpt.plan").write_text("mesh (dp=2)")
    assert find_plan("gpt.plan", HERE).mesh.size == 2


def test_a_plan_file_that_is_not_there_is_named() -> None:
    for source in ("nowhere.plan", "mesh.plan", Path("nowhere.plan")):
        with pytest.raises(stretto.StrettoError, match=rf'E0118.*"{source}"'):
            stretto.compile(nn.Linear(2, 2), plan=source)


def test_a_mistake_in_a_plan_is_shown_when_the_class_is_decorated() -> None:
    with pytest.raises(stretto.StrettoError, match=r"<plan>:2:.*E0107"):

        @stretto.compile(plan='mesh (dp=2)\nshard "*" columns over tp')
        class Model(nn.Module):
            pass


def test_a_pattern_that_matches_nothing_is_shown_when_the_model_is_built() -> None:
    plan = 'mesh (tp=2)\nshard "wieght" dim 0 over tp'

    @stretto.compile(plan=plan)
    class Model(nn.Linear):
        pass

    for build in (lambda: Model(2, 2), lambda: stretto.compile(nn.Linear(2, 2), plan=plan)):
        with pytest.raises(stretto.StrettoError, match="E0114"):
            build()


def test_patterns_are_judged_when_the_outermost_class_is_built() -> None:
    @stretto.compile(plan='mesh (tp=2)\nshard "late" columns over tp')
    class Base(nn.Module):
        pass

    class Complete(Base):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Linear(2, 2)

    Complete()
    assert GPT().embed.weight.shape == (50, 16)


@pytest.mark.slow
def test_importing_stretto_imports_no_compiler() -> None:
    code = (
        "import sys, stretto\n"
        "assert stretto.__version__ and 'compile' in dir(stretto)\n"
        "stretto.StrettoError\n"
        "heavy = {'torch', 'torch_mlir', 'lark', 'networkx', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "stretto.compile\n"
        "assert 'transformers' not in sys.modules\n"
        "try:\n    stretto.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == "module 'stretto' has no attribute 'nothing'\n"


@pytest.mark.parametrize(
    "text", ["", "  ", 'shard "*" columns over tp', "pipeline over pp { microbatches 2 }", "# mesh (dp=2)"]
)
def test_text_that_is_no_path_gives_the_error_of_a_plan(text: str) -> None:
    with pytest.raises(stretto.StrettoError) as caught:
        find_plan(text)
    assert caught.value.code == "E0111"
