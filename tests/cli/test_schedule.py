"""`stretto schedule`: the list, a schedule's picture and figures, its SVG, and refusals."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from stretto.driver.text.schedule import show_list
from stretto.driver.text.schedule_pictures import FOLDER, pictures
from stretto.schedules import CATALOGUE

from .conftest import Command

MINE = """schedule mine(stages p, microbatches m) {
  stage s {
    warmup min(p - s - 1, m) { F }
    steady m - min(p - s - 1, m) { F B }
    drain { B }
  }
}
"""


def test_without_a_name_all_schedules_are_listed(stretto: Command) -> None:
    done = stretto("schedule")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[1 : 1 + len(CATALOGUE)]] == list(CATALOGUE)
    assert [entry["name"] for entry in json.loads(stretto("schedule", "--json").out)["schedules"]] == list(CATALOGUE)


def test_a_schedule_is_drawn_and_measured(stretto: Command) -> None:
    done = stretto("schedule", "1f1b", "-p", 2, "-m", 3)
    assert done.out.splitlines() == [
        "1f1b: 2 stages, 3 microbatches",
        "",
        "rank 0 |F0 F1 ......B0    F2 B1    ...B2    |",
        "rank 1 |...F0 B0    F1 B1    F2 B2    ......|",
        "F forward; B backward; numbers: microbatches; . idle",
        "",
        "makespan            12",
        "bubble by makespan  25.00%",
        "bubble by span      25.00%  (longest span of a rank: 12)",
        "peak activations    2  (by rank: 2, 1)",
        "proved: no deadlock, every task runs once and after its inputs",
    ]


def test_a_long_schedule_is_drawn_small(stretto: Command) -> None:
    done = stretto("schedule", "zb-v", "-p", 6, "-m", 40)
    rows = [line for line in done.out.splitlines() if line.startswith("rank")]
    assert len(rows) == 6 and len({len(row) for row in rows}) == 1 and len(rows[0]) < 165
    assert set("".join(row.split("|")[1] for row in rows)) == set("FBWfbw.")


def test_json_has_figures_and_every_task(stretto: Command) -> None:
    report = json.loads(stretto("schedule", "dualpipe-v", "-p", 2, "-m", 4, "--times", "1,1,1,0", "--json").out)
    assert (report["stages"], report["chunks"], report["placement"]) == (2, 2, [0, 1, 1, 0])
    assert report["makespan"] == pytest.approx(13) and report["peak_activations"] == [2.5, 2.5]
    assert report["bubble_by_makespan"] == pytest.approx(1 / 13)
    first = {"kind": "F", "stage": 0, "microbatch": 0, "start": 0, "end": 0.5, "overlapped": False}
    assert report["ranks"][0][0] == first and any(task["overlapped"] for task in report["ranks"][0])


def test_tasks_of_a_shared_vocabulary_are_inserted(stretto: Command) -> None:
    done = stretto("schedule", "1f1b", "-p", 2, "-m", 3, "--vocabulary", 1, "--shared", "1,1")
    assert done.out.splitlines()[:5] == [
        "1f1b: 2 stages, 3 microbatches, a vocabulary shared with 1 barrier",
        "",
        "rank 0 |F0 F1 S0 T0 F2 S1 T1 ......B0    S2 T2 B1    ...B2    |",
        "rank 1 |...F0 S0 T0 F1 S1 T1 B0    F2 S2 B1    T2 B2    ......|",
        "F forward; B backward; S output, shared by all ranks; T rest of it after the barrier; "
        "numbers: microbatches; . idle",
    ]
    report = json.loads(stretto("schedule", "zb-v", "--vocabulary", 2, "--shared", "1,1,0.5,0.5", "--json").out)
    assert report["barriers"] == 2 and report["times"]["e"] == 0.5
    assert {task["kind"] for task in report["ranks"][3]} == set("FBWSTEG")


def test_times_chunks_cap_and_search_are_taken(stretto: Command) -> None:
    options = (
        "-p",
        2,
        "-m",
        4,
        "--times",
        "2,3,1,0.5",
        "--memory-cap",
        2,
        "--search",
        20,
        "--by",
        "makespan",
        "--json",
    )
    report = json.loads(stretto("schedule", "auto", *options).out)
    assert report["times"] == {"f": 2, "b": 3, "w": 1, "c": 0.5, "fb": None}
    assert max(report["peak_activations"]) <= 2
    assert json.loads(stretto("schedule", "interleaved", "--chunks", 3, "--json").out)["chunks"] == 3


def test_the_svg_has_a_box_for_every_task(stretto: Command, tmp_path: Path) -> None:
    file = tmp_path / "zb.svg"
    assert stretto("schedule", "zb-h1", "-p", 3, "-m", 5, "--svg", file).code == 0
    root = xml.fromstring(file.read_text(encoding="utf-8"))
    assert len([element for element in root.iter() if element.tag.endswith("title")]) == 3 * 5 * 3


def test_a_written_schedule_is_proved_and_drawn(stretto: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.schedule"
    file.write_text(MINE)
    mine, named = (stretto("schedule", name, "-p", 2, "-m", 3).out for name in (file, "1f1b"))
    assert mine.splitlines()[1:] == named.splitlines()[1:]
    assert mine.startswith("mine: 2 stages, 3 microbatches")


def test_a_written_schedule_over_the_cap_is_refused_at_its_line(stretto: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.schedule"
    file.write_text(MINE)
    done = stretto("schedule", file, "--memory-cap", 3)
    assert (done.code, done.out) == (1, "")
    assert "mine.schedule:4:36: error[E0722]" in done.err and "the cap is 3" in done.err


def test_a_named_schedule_over_the_cap_is_refused(stretto: Command) -> None:
    done = stretto("schedule", "gpipe", "-p", 2, "-m", 4, "--memory-cap", 3)
    assert done.code == 1 and "error[E0722]" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("1f1",), 1, 'did you mean "1f1b"?'),
        (("missing.schedule",), 1, "error[E0507]"),
        (("1f1b", "--times", "1,2"), 2, "is not F,B,W,C"),
        (("1f1b", "-m", "0"), 2, "is less than 1"),
        (("1f1b", "--shared", "1"), 2, "is not S,T,E,G"),
        (("1f1b", "--vocabulary", "3"), 2, "choose from"),
        (("1f1b", "--times=-1,1,1"), 1, "error[E0442]"),
        (("1f1b", "--times", "1e308,1e308,1e308"), 1, "expected times whose sum is at most 1e+200"),
        (("dualpipe-v", "-m", "4"), 1, "error[E0441]"),
        (("1f1b", "-p", "9" * 22), 1, "expected at most 1000000"),
        (("1f1b", "-p", "9" * 4000), 1, "cannot have more than 10^30 stages"),
        (("1f1b", "-m", "1000000"), 1, "a schedule of 4000000 forwards (stages x microbatches x chunks) is too large"),
        (("zb-v", "--search", "1000000000000"), 1, "cannot have 1000000000000 tries"),
        (("1f1b", "--pictures"), 2, "takes no NAME"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments: tuple[str, ...], code: int, text: str, stretto: Command) -> None:
    done = stretto("schedule", *arguments)
    assert done.code == code and text in done.err


def test_named_schedules_need_neither_torch_nor_the_compiler() -> None:
    script = """
import sys
from stretto import cli
assert cli.main(["schedule", "zb-v"]) == 0
assert not [name for name in ("torch", "torch_mlir", "lark", "networkx") if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pictures_of_the_docs_are_current() -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
    assert kept == pictures(), "schedules have changed: stretto schedule --pictures"


def test_the_docs_have_every_schedule_with_picture_formula_and_source() -> None:
    text = (FOLDER.parent / "pipelines.md").read_text(encoding="utf-8")
    for entry in CATALOGUE.values():
        assert f"| `{entry.name}` | {entry.line} | {entry.idle} | {entry.memory} | {entry.source} |" in text
        assert f"(pictures/{entry.name}.svg)" in text


def test_the_schedule_of_the_docs_is_one_and_its_mistake_is_shown(stretto: Command, tmp_path: Path) -> None:
    text = (FOLDER.parent / "pipelines.md").read_text(encoding="utf-8")
    file = tmp_path / "mine.schedule"
    file.write_text(text[text.index("# 1F1B, written out") : text.index("```\n\n`stretto schedule mine")])
    assert stretto("schedule", file).code == 0
    file.write_text(
        file.read_text().replace("min(p - s - 1, m) { F }", "1 + s { F }").replace("m - min(p - s - 1, m)", "0")
    )
    file.write_text(file.read_text().replace("{ B }", "{ B F }"))
    assert "deadlock: ranks 0 -> 1 -> 0 wait for each other" in stretto("schedule", file, "-p", 2, "-m", 3).err


def test_a_written_schedule_without_a_task_is_refused(stretto: Command, tmp_path: Path) -> None:
    file = tmp_path / "none.schedule"
    file.write_text("schedule none(stages p, microbatches m) { stage s { steady 0 { F B } } }\n")
    done = stretto("schedule", file)
    assert done.code == 1
    assert "error[E0724]: rank 0 never runs F of microbatch 0 on stage 0" in done.err


def test_names_are_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal)
    show_list()
    lines = terminal.getvalue().splitlines()
    assert {line.split()[0] for line in lines if line.strip()} >= {"breadth-first", "dualpipe-v", "forward-only"}
    assert "…" not in terminal.getvalue() and max(map(len, lines[:-2])) <= 80
