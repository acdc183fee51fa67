"""A program of another format is refused, with the command that compiles it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stretto.runtime import Program, ProgramError
from stretto.runtime.program.versions import FORMAT

from ..tiny_programs import linear

HF = {"kind": "hf", "path": "/models/my llama", "plan": "/plans/tp.plan", "request": {"dtype": "float64", "batch": 2}}


def refusal(folder: Path, **changes: Any) -> ProgramError:
    linear().save(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    with pytest.raises(ProgramError) as caught:
        Program.load(folder)
    assert caught.value.code == "E0304"
    return caught.value


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_format_is_refused_with_the_command_that_compiles_it_again(tmp_path: Path, version: int) -> None:
    folder = tmp_path / "old"
    error = refusal(folder, format=version, source=HF)
    assert f"format {version}" in error.message and f"format {FORMAT}" in error.message
    assert error.help == (
        f"compile it again: stretto compile 'hf:/models/my llama' --plan /plans/tp.plan -o {folder} --mode train "
        "--dtype float64 --batch 2"
    )


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ({"kind": "file", "path": "model.py", "name": "gpt"}, "stretto compile model.py:gpt --plan FILE"),
        ({"kind": "file", "path": "a;b\x1b[2J", "name": "f"}, "stretto compile 'a;b\\x1b[2J:f' --plan FILE"),
        ({"path": "x" * 2000, "kind": "hf"}, None),
        ({"path": 3}, None),
        ({}, None),
    ],
)
def test_the_command_says_what_the_manifest_says_and_is_safe_to_print(
    tmp_path: Path, source: Mapping[str, Any], command: str | None
) -> None:
    error = refusal(tmp_path / "old", format=1, source=source)
    assert (command or "compile the model again with this version") in error.help
    assert error.help.isprintable()


def test_a_newer_format_asks_for_a_newer_version(tmp_path: Path) -> None:
    assert "install a newer stretto" in refusal(tmp_path / "new", format=FORMAT + 1, source=HF).help
