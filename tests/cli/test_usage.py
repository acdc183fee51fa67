"""Wrong usage: a misspelt command, flag or path names what may be meant, before anything is missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Command


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("compile net.py:make --plna tp.plan", "--plan"),
        ("compile net.py:make --plna=tp.plan -o out", "--plan"),
        ("run out --chekc", "--check"),
        ("verify out --vaules", "--values"),
    ],
)
def test_a_misspelt_flag_is_the_first_error(typed: str, meant: str, stretto: Command) -> None:
    done = stretto(*typed.split())
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith(f'did you mean "{meant}"?')


def test_a_flag_may_be_shortened_and_a_value_may_look_like_one(stretto: Command, tmp_path: Path) -> None:
    assert "unrecognized" not in stretto("run", tmp_path / "none", "--che").err
    assert "is not a program folder" in stretto("run", "--", "--chekc").err


def test_a_misspelt_command_names_the_nearest(stretto: Command) -> None:
    done = stretto("vreify", "out")
    assert done.code == 2 and done.err.splitlines()[-1].endswith('did you mean "verify"?')
    assert "did you mean" not in stretto("xyzzy").err


def test_a_target_without_a_plan_asks_for_the_plan(stretto: Command) -> None:
    for target in ("net.py:make", "hf:gpt2"):
        done = stretto("verify", target)
        assert done.code == 2 and "name its file with --plan FILE" in done.err


def test_a_module_that_is_missing_names_the_one_beside_it(stretto: Command, tmp_path: Path) -> None:
    (tmp_path / "before.mlir").touch()
    done = stretto("diff", tmp_path / "befroe.mlir", tmp_path / "before.mlir")
    assert done.code == 1 and f'did you mean "{tmp_path / "before.mlir"}"?' in done.err
    assert "there is no folder" in stretto("diff", tmp_path / "none" / "a.mlir", "b.mlir").err
