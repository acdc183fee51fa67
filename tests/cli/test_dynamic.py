"""`compile --dynamic`, and its named sizes in `run` and `explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stretto.runtime import Program

from .conftest import Command, compiled

DIMS = ("--dynamic", "tokens=batch,seq:2..64", "--dynamic", "targets=batch,seq")


@pytest.fixture(scope="module")
def dynamic(sources: Path) -> Path:
    """The GPT, compiled for training in float64 on two ranks for any batch and sequence."""
    return compiled(sources, "model.py:make", "two.plan", "dynamic", "--dtype", "float64", *DIMS)


def test_explain_prints_the_sizes_with_their_ranges(stretto: Command, dynamic: Path) -> None:
    done = stretto("explain", dynamic)
    assert "sizes    batch=4 of 2.., seq=8 of 2..64\n" in done.out
    report = json.loads(stretto("explain", dynamic, "--json").out)["sizes"]
    assert [(entry["name"], entry["low"], entry["high"]) for entry in report["names"]] == [
        ("batch", 2, None),
        ("seq", 2, 64),
    ]


def test_a_run_is_bound_to_the_sizes_that_it_names(stretto: Command, dynamic: Path) -> None:
    report = json.loads(stretto("run", dynamic, "--steps", 1, "--json", "--sizes", "batch=3,seq=5").out)
    assert report["tokens"] == 15
    assert json.loads(stretto("run", dynamic, "--steps", 1, "--json", "--sizes", "seq=5").out)["tokens"] == 20
    assert json.loads(stretto("run", dynamic, "--steps", 1, "--json").out)["tokens"] == 32


def test_a_check_compares_with_the_model_at_these_sizes(stretto: Command, dynamic: Path, sources: Path) -> None:
    target = f"{sources / 'model.py'}:make"
    done = stretto("run", dynamic, "--check", "--against", target, "--json", "--sizes", "batch=3,seq=11")
    report = json.loads(done.out)
    assert done.code == 0 and report["passed"] and report["reference"]["live"]


@pytest.mark.slow
def test_processes_are_bound_too(stretto: Command, dynamic: Path) -> None:
    report = json.loads(stretto("run", dynamic, "--ranks", "processes", "--steps", 1, "--json", "--sizes", "seq=5").out)
    assert report["tokens"] == 20
    assert stretto("run", dynamic, "--ranks", "processes", "--check", "--sizes", "batch=3,seq=11").code == 0


@pytest.mark.parametrize(("sizes", "says"), [("seq=65", "outside of 2..64"), ("sec=3", "no size 'sec'")])
def test_sizes_that_it_does_not_hold_for_are_refused(stretto: Command, dynamic: Path, sizes: str, says: str) -> None:
    done = stretto("run", dynamic, "--sizes", sizes)
    assert done.code == 1 and "E0309" in done.err and says in done.err


@pytest.mark.parametrize("argument", ["tokens", "tokens=", "tokens=4", "tokens=-,-", "tokens=seq:2", "=batch"])
def test_what_names_no_dims_is_wrong_usage(stretto: Command, sources: Path, tmp_path: Path, argument: str) -> None:
    model, plan = sources / "model.py:make", sources / "two.plan"
    assert stretto("compile", model, "--plan", plan, "-o", tmp_path / "p", "--dynamic", argument).code == 2


def test_where_no_program_holds_for_more_sizes_compile_says_why(
    stretto: Command, sources: Path, tmp_path: Path
) -> None:
    plan, output = sources / "two.plan", tmp_path / "p"
    done = stretto(
        "compile", sources / "model.py:make_fixed", "--plan", plan, "-o", output, "--dynamic", "tokens=batch"
    )
    assert done.code == 1 and "E0422" in done.err and "fixes batch" in done.err
    assert not output.exists()
    llama = ("compile", f"hf:{sources / 'llama.json'}", "--plan", sources / "llama.plan", "-o", output)
    done = stretto(*llama, "--mode", "infer", "--dynamic", "input_ids=batch")
    assert done.code == 1 and "E0422" in done.err and '"batch" is not within 2..' in done.err


def test_a_program_without_named_sizes_takes_none(stretto: Command, program: Path) -> None:
    done = stretto("run", program, "--sizes", "batch=2")
    assert done.code == 1 and "E0309" in done.err
    assert Program.load(program).symbolic is None
