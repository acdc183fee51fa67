"""docs/training-loop.md is one script that runs as it stands there, and explains each numbered line of it once."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "training-loop.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_loop_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has imported the compiler."""
    script = tmp_path / "train.py"
    script.write_text("\n\n".join(blocks()))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3", "evaluated", "at"]
    assert lines[-1] == "at step 4"


@pytest.mark.slow
def test_the_loop_runs_as_four_processes_too(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("\n\n".join(blocks()))
    outputs = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]):
        command = [sys.executable, *launcher, str(script)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
        outputs.append(sorted({round(float(value), 3) for value in re.findall(r"\d+\.\d+", result.stdout)}))
    assert outputs[0] == pytest.approx(outputs[1], abs=2e-3)


def test_every_numbered_line_is_explained_in_order() -> None:
    marked = [int(number) for number in re.findall(r"  # (\d+)$", blocks()[0], re.MULTILINE)]
    explained = [int(number) for number in re.findall(r"^(\d+)\. ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)]
    assert marked == explained == list(range(1, len(marked) + 1))
