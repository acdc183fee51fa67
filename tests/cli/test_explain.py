"""`stretto explain`: its figures are those of the program's instructions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stretto.driver.report.explain import explain
from stretto.driver.report.traffic import traffic_of
from stretto.runtime import Program

from .conftest import MODEL, Command


def counted(program: Program, function: str = "main") -> Counter[tuple[str, tuple[str, ...]]]:
    """Collectives by kind and axes, every call followed."""
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for instruction in program.functions[function].code:
        if instruction.op == "call":
            counts.update(counted(program, str(instruction.args[0])))
        elif instruction.op.endswith("_start"):
            axes: Any = instruction.kwargs["axes"]
            counts[instruction.op.removeprefix("comm.").removesuffix("_start"), tuple(axes)] += 1
    return counts


def test_counts_are_those_of_the_instructions_with_calls_followed(program: Path) -> None:
    loaded = Program.load(program)
    assert any(instruction.op == "call" for instruction in loaded.functions["main"].code), "the layers are folded"
    counts = {(kind, axes): count for kind, axes, count, _ in explain(loaded).totals}
    assert counts == dict(counted(loaded))


def test_bytes_are_those_of_a_ring(program: Path) -> None:
    loaded = Program.load(program)
    for site in traffic_of(loaded):
        ranks = loaded.mesh.size(site.axes)
        passes = 2 if site.kind == "all_reduce" else 1
        assert site.sent_bytes == passes * site.tensor_bytes * (ranks - 1) // ranks


def test_the_backward_reduces_each_gradient_once_over_the_data_axis(program: Path) -> None:
    loaded = Program.load(program)
    reduced = Counter(name for entry in explain(loaded).communication for name in entry.gradients if "dp" in entry.axes)
    assert reduced == Counter({gradient.name: 1 for gradient in loaded.results_of_kind("gradient")})


def test_json_is_one_object_with_sizes_in_bytes(stretto: Command, program: Path) -> None:
    done = stretto("explain", program, "--json")
    report = json.loads(done.out)
    assert done.code == 0 and report["mesh"] == {"dp": 2, "tp": 2} and report["ranks"] == 4
    rows = {parameter["name"]: parameter for parameter in report["parameters"]}
    row = rows["layers.*.q_proj.weight"]
    assert row["names"] == [f"layers.{n}.q_proj.weight" for n in range(3)] and row["count"] == 3
    assert (row["shape"], row["local_shape"], row["placement"]) == ([16, 16], [8, 16], "dim 0 over tp")
    assert row["bytes_per_rank"] == 8 * 16 * 8
    assert rows["embed.weight"]["aliases"] == ["head.weight"]
    assert report["parameter_bytes"] == 8 * (40 * 16 + 3 * (4 * 16 * 16 + 3 * 16))
    layer = 2 * 16 + 16 + 4 * 16 * 8
    assert report["parameter_bytes_per_rank"] == 8 * (20 * 16 + 3 * layer)
    assert {entry["phase"] for entry in report["communication"]} == {"forward", "backward"}


def test_a_collective_is_traced_to_the_module_and_the_line_that_cause_it(stretto: Command, program: Path) -> None:
    report = json.loads(stretto("explain", program, "--json").out)
    lines = MODEL.splitlines()
    rows = [
        entry
        for entry in report["communication"]
        if entry["phase"] == "forward" and entry["module"] == "layers.*.o_proj"
    ]
    assert rows, report["communication"]
    for row in rows:
        assert row["file"].endswith("model.py") and "self.o_proj" in lines[row["line"] - 1]
        assert (row["kind"], row["axes"], row["count"]) == ("all_reduce", ["tp"], 3)


def test_the_text_has_every_part_and_one_line_a_row(stretto: Command, program: Path) -> None:
    done = stretto("explain", program)
    assert done.code == 0 and done.err == "" and "\033" not in done.out
    headings = [line for line in done.out.splitlines() if line and not line.startswith(" ")]
    for part in ("Parameters", "Inputs, buffers and constants", "Communication of one step", "Remarks"):
        assert part in headings
    (row,) = [line for line in done.out.splitlines() if "layers.*.q_proj.weight" in line]
    assert row.split()[1:3] == ["3", "x"] and "dim 0 over tp" in row and "[8, 16]" in row and "1.0 KiB" in row
    lines = [line for line in done.out.splitlines() if str(program.parent) not in line and "[" not in line[:20]]
    assert [line for line in lines if len(line) > 100 and not line.startswith("  (sent")] == []


def test_remarks_are_counted_by_pass_and_shown_with_their_places_on_demand(stretto: Command, program: Path) -> None:
    counted = stretto("explain", program).out.split("\nRemarks\n")[1]
    assert "fold-layers           2 applied" in counted and "--remarks" in counted
    every = stretto("explain", program, "--remarks").out.split("\nRemarks\n")[1]
    assert "applied[raise-idioms]: 3 x nn.attention (layers.*" in every and "model.py:" in every
    assert "gpt.plan:2:1" in every and re.search(r"missed\[start-collectives\]: .*stays exposed.*model\.py", every)
    passes = {line.split("[")[1].split("]")[0] for line in every.splitlines() if "[" in line}
    assert passes >= {"place-arguments", "fold-layers", "propagate-placements", "partition-tensors", "lower-idioms"}


def test_a_statement_without_effect_is_a_warning_when_compiled_and_explained(stretto: Command, sources: Path) -> None:
    plan = sources / "void.plan"
    plan.write_text('mesh (tp=2)\nshard "embed" dim 0 over tp\nshard "embed" vocab over tp\n')
    done = stretto(
        "compile", f"{sources / 'model.py'}:make_forward", "--plan", plan, "-o", sources / "void", "--mode", "infer"
    )
    text = (
        f"{plan}:2:1: warning: this statement has no effect: later statements decide for everything that it matches "
        '(line 3)\n    2 | shard "embed" dim 0 over tp\n      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n'
    )
    assert done.code == 0 and text in done.err and "warning" not in done.out
    assert "Warnings\n  " + text.replace("\n", "\n  ").rstrip(" ") in stretto("explain", sources / "void").out
    (warning,) = json.loads(stretto("explain", sources / "void", "--json").out)["warnings"]
    assert (warning["kind"], warning["plan"]["line"], warning["plan"]["file"]) == ("warning", 2, str(plan))
    remarks = json.loads((sources / "void" / "remarks.json").read_text())
    assert [remark for remark in remarks if remark["kind"] == "warning"] == [warning]


def test_a_plan_whose_statements_all_do_something_has_no_warnings(stretto: Command, program: Path) -> None:
    assert json.loads(stretto("explain", program, "--json").out)["warnings"] == []


def test_a_redistribution_is_listed_with_the_statement_that_avoids_it(stretto: Command, sources: Path) -> None:
    plan, out = sources / "moves.plan", sources / "moves"
    plan.write_text('mesh (tp=2)\nshard "*.{q,k,v,o}_proj" columns over tp\n')
    stretto("compile", f"{sources / 'model.py'}:make_forward", "--plan", plan, "-o", out, "--mode", "infer")
    listed = stretto("explain", out).out.split("\nRedistributions that a statement avoids\n")[1].split("\n\n")[0]
    assert 'its input goes from shard(2) to replicate over tp; avoided by: shard "*.o_proj" rows over tp' in listed
    assert "the links of all axes count alike" in stretto("explain", out).out
    [entry, *_] = json.loads(stretto("explain", out, "--json").out)["avoidable"]
    assert entry["module"].endswith("o_proj") and entry["kind"] == "note"


def test_ops_without_a_rule_are_listed_apart_from_other_remarks(program: Path) -> None:
    missed = {
        "pass": "propagate-placements", "kind": "missed", "message": '"x.y" has no sharding rule', "module": "head",
        "file": "m.py", "line": 3,
    }  # fmt: skip
    loaded = Program.load(program)
    explanation = explain(replace(loaded, remarks=[*loaded.remarks, missed]))  # type: ignore[misc]
    assert explanation.without_rule == [missed] and missed not in explanation.other_remarks


BASE = """
import sys

sys.modules.update(dict.fromkeys({blocked!r}))  # as where they are not installed
from stretto import cli

assert cli.main(["explain", {folder!r}]) == 0
assert cli.main(["run", {folder!r}, "--check"]) == 0
assert cli.main(["compile", "m.py:f", "--plan", "x", "-o", "p"]) == 1
"""


@pytest.mark.slow
def test_a_base_install_runs_checks_and_explains(program: Path) -> None:
    script = BASE.format(blocked=("torch_mlir", "lark", "networkx", "transformers"), folder=str(program))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Parameters" in done.stdout and "passed" in done.stdout
    assert "the exported forward" in done.stdout
    assert "error[E0501]" in done.stderr


def test_the_command_itself_imports_neither_torch_nor_a_compiler() -> None:
    script = "import sys, stretto.cli\nassert not {'torch', 'torch_mlir', 'lark', 'rich'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("command", [["explain"], ["run"], ["run", "--check"]])
def test_a_folder_that_is_no_program_is_refused(command: list[str], stretto: Command, tmp_path: Path) -> None:
    done = stretto(*command, tmp_path)
    assert (done.code, done.out) == (1, "") and "error[E0301]" in done.err


def test_the_statement_that_the_name_of_an_axis_implies_is_printed(stretto: Command, program: Path) -> None:
    assert "implied  shard inputs batch over dp\n" in stretto("explain", program).out
    assert json.loads(stretto("explain", program, "--json").out)["implied"] == ["shard inputs batch over dp"]


def test_kinds_are_listed_with_what_runs_for_them(stretto: Command, program: Path) -> None:
    line = "kinds    attention by torch's flash attention; attention_backward by torch's flash attention"
    assert line in stretto("explain", program).out.splitlines()
    listed = json.loads(stretto("explain", program, "--json").out)["kinds"]
    assert [(each["kind"], each["functions"], each["declined"]) for each in listed] == [
        ("attention", 1, []),
        ("attention_backward", 1, []),
    ]


@pytest.mark.parametrize("command", ["run", "explain"])
def test_implementations_that_no_package_offers_are_refused(stretto: Command, program: Path, command: str) -> None:
    done = stretto(command, program, "--implementations", "nobodys")
    assert done.code == 1 and 'error[E0315]: no package offers implementations "nobodys"' in done.err


def test_the_streams_of_a_rank_are_shown_and_proved(stretto: Command, program: Path) -> None:
    found = json.loads(stretto("explain", program, "--streams", "1", "--json").out)
    assert found["proved"] and found["rank"] == 1 and found["graphs"] == 0
    by_stream = Counter(work["stream"] for work in found["works"])
    assert by_stream["comm"] == sum(counted(Program.load(program)).values())
    shown = stretto("explain", program, "--streams", "--graphs").out
    assert "Streams of rank 0 on a GPU, as recorded without one" in shown and "graphs   " in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--streams", "9"], "the ranks of the program are 0 to"), (["--graphs"], "--graphs goes with --streams")],
)
def test_streams_of_what_there_is_not_are_refused(
    stretto: Command, program: Path, options: list[str], said: str
) -> None:
    result = stretto("explain", program, *options)
    assert result.code == 2 and said in result.err
