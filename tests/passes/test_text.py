"""Every case in a `.mlir` file in this folder, through the pipeline that its RUN line names, against its CHECK lines.

A case starts with `// RUN: stretto opt -p "..." %s | filecheck %s`; `%S` stands for this folder. Cases are divided by
`// -----`; one that has no RUN line takes the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from filecheck.matcher import Matcher
from filecheck.options import Options
from stretto.ir.module import Module
from stretto.passes.manager import PassManager, step_name
from stretto.passes.pipeline_text import parse_pipeline
from stretto.passes.registry import TABLE

FOLDER = Path(__file__).parent
_RUN = re.compile(r'^// RUN: stretto opt -p "(?P<pipeline>.*)" %s \| filecheck %s$', re.MULTILINE)


def cases() -> Iterator[tuple[str, str, str]]:
    """(name, pipeline, text) of every case of every file."""
    for file in sorted(FOLDER.rglob("*.mlir")):
        pipeline = ""
        for number, text in enumerate(file.read_text().split("// -----\n")):
            run = _RUN.search(text)
            pipeline = run["pipeline"] if run else pipeline
            yield f"{file.stem}-{number}", pipeline, text


CASES = list(cases())


@pytest.mark.parametrize(("pipeline", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_pass_prints_what_the_case_expects(pipeline: str, text: str, tmp_path: Path) -> None:
    module = Module.parse(text)
    PassManager(parse_pipeline(pipeline.replace("%S", str(FOLDER)))).run(module)
    expected, printed = tmp_path / "case.mlir", tmp_path / "printed.mlir"
    expected.write_text(text)
    printed.write_text(str(module))
    failed = Matcher.from_opts(Options(str(expected), str(printed))).run()
    assert not failed, f"this does not match the case's CHECK lines (filecheck's message is below):\n{module}"


def test_every_case_checks_something() -> None:
    assert [name for name, pipeline, text in CASES if not pipeline or "CHECK" not in text] == []


def test_each_pass_of_ours_has_its_file_and_runs_in_it() -> None:
    missing = [name for name in TABLE if not any(name in _names(pipeline, case) for case, pipeline, _ in CASES)]
    assert missing == []


def _names(pipeline: str, case: str) -> set[str]:
    """The passes of a pipeline that the case's file is about."""
    steps = parse_pipeline(pipeline.replace("%S", str(FOLDER)))
    return {name for name in map(step_name, steps) if name.replace("-", "_") == case.rpartition("-")[0]}
