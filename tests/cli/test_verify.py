"""`stretto verify`: programs are proved or refuted, and passes are compared before and after."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from stretto import cli
from stretto.driver.commands import verify
from stretto.driver.commands.arguments import size
from stretto.passes.manager import PassFailure
from stretto.runtime.program.program import Program

from ..runtime.prover.programs import crossed, reduce, relu, wait
from ..runtime.prover.programs import program as program_of
from .conftest import Command
from .faulty import MODULE, register

SAFE = "canonicalize,cse,start-collectives"

INTEGERS = """func.func @main(%x: tensor<4xi64> {aten.argument = {kind = "input", name = "ids"}}) -> tensor<4xi64> {
  %0 = "aten.neg_default"(%x) : (tensor<4xi64>) -> tensor<4xi64>
  return %0 : tensor<4xi64>
}
"""


FROM_FILE = """module attributes {{comm.level = "comm", comm.mesh = []}} {{
func.func @main() -> tensor<4xf32> {{
  %0 = "aten.from_file_default"() {{filename = "{file}", shared = true, size = 4}} : () -> tensor<4xf32>
  return %0 : tensor<4xf32>
}}
}}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module, and a pass `do-harm` beside it."""
    register(tmp_path, monkeypatch)
    file = tmp_path / "module.mlir"
    file.write_text(MODULE)
    return file


def test_a_compiled_program_is_safe_and_its_figures_are_printed(stretto: Command, program: Path) -> None:
    done = stretto("verify", program)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("safe: 4 ranks (1 distinct), ") and "  peak " in done.out
    report = json.loads(stretto("verify", program, "--json").out)
    assert (
        report["verdict"] == "safe" and report["ranks"] == 4 and report["peak_bytes"] > 0 and report["collectives"] > 10
    )


def test_a_proof_that_takes_long_says_what_it_does(
    stretto: Command, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_SILENCE_S", 0.002)
    done = stretto("verify", program)
    assert re.search(r"stretto verify: at work for \d+ s: (order|values)\n", done.err)


def test_the_values_of_a_program_are_those_of_its_module(stretto: Command, program: Path) -> None:
    done = stretto("verify", program, "--values")
    assert done.code == 0
    assert re.fullmatch(r"values: \d+ results are those of the program's module \(.*\)", done.out.splitlines()[-1])
    report = json.loads(stretto("verify", program, "--json").out)["values"]
    assert (report["verdict"], report["differ"]) == ("equal", []) and report["results"] > 10


def test_a_program_that_computes_something_else_than_its_module_is_refuted(
    stretto: Command, program: Path, tmp_path: Path
) -> None:
    right = Program.load(program)
    main = right.functions["main"]
    index = next(i for i, c in enumerate(main.code) if c.op == "aten.add.Tensor")
    wrong = replace(main.code[index], op="aten.sub.Tensor")
    faulty = replace(main, code=(*main.code[:index], wrong, *main.code[index + 1 :]))
    replace(right, functions={**right.functions, "main": faulty}, loaded_hash="").save(tmp_path / "faulty")
    done = stretto("verify", tmp_path / "faulty")
    assert done.code == 1 and done.out.startswith("safe: ")
    assert "values: the program does not compute what its module does" in done.out
    assert "  output: different" in done.out


def test_values_that_do_not_fit_are_not_judged_and_only_demanded_ones_fail(stretto: Command, program: Path) -> None:
    done = stretto("verify", program, "--values-cap", "1KiB")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "values: not judged (they take more memory than 1.0KiB; raise --values-cap)"
    assert stretto("verify", program, "--values-cap", "1KiB", "--values").code == 3
    fitting = stretto("verify", program, "--values-cap", "48KiB", "--values")
    assert fitting.code == 3 and "not judged" in fitting.out


def test_values_are_not_judged_without_the_compiler(
    stretto: Command, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "missing_of_compiler", lambda: ["torch_mlir"])
    done = stretto("verify", program)
    assert done.code == 0 and "values: not judged (reading the program's module needs the compiler" in done.out
    assert stretto("verify", program, "--values").code == 3


def test_a_folder_whose_module_calls_an_op_outside_the_table_runs_nothing(
    stretto: Command, program: Path, tmp_path: Path
) -> None:
    right = Program.load(program)
    replace(right, ir=FROM_FILE.format(file=tmp_path / "victim"), loaded_hash="").save(tmp_path / "foreign")
    done = stretto("verify", tmp_path / "foreign", "--values")
    assert done.code == 3 and "'aten.from_file.default', which is not in the table of ops" in done.out
    assert not (tmp_path / "victim").exists()


def test_a_rank_that_takes_more_than_the_cap_is_a_counterexample(stretto: Command, program: Path) -> None:
    done = stretto("verify", program, "--memory-cap", "1KiB")
    assert done.code == 1 and "error[E0713]" in done.out and "the cap is 1,024" in done.out
    assert stretto("verify", program, "--memory-cap", "1GiB").code == 0


def test_a_program_that_drops_a_future_is_refuted_with_its_place(stretto: Command, tmp_path: Path) -> None:
    program_of(reduce(0, 1), wait(1, 2), relu(2, 3), result=3).save(str(tmp_path / "good"))
    assert stretto("verify", tmp_path / "good").code == 0
    program_of(reduce(0, 1), relu(0, 2), result=2).save(str(tmp_path / "bad"))
    done = stretto("verify", tmp_path / "bad")
    assert done.code == 1 and "error[E0706]" in done.out and "model.py:31" in done.out
    report = json.loads(stretto("verify", tmp_path / "bad", "--json").out)
    assert report["verdict"] == "counterexample" and report["counterexample"]["code"] == "E0706"


def test_a_program_that_is_safe_under_gloo_only_says_so(stretto: Command, tmp_path: Path) -> None:
    crossed().save(str(tmp_path / "crossed"))
    done = stretto("verify", tmp_path / "crossed")
    assert done.code == 1 and "error[E0712]" in done.out and "safe under gloo only" in done.out
    done = stretto("verify", tmp_path / "crossed", "--backend", "gloo")
    assert done.code == 0 and "safe under gloo only: 4 ranks" in done.out
    assert json.loads(stretto("verify", tmp_path / "crossed", "--backend", "gloo", "--json").out)["only_under_gloo"]
    crossed(waits_first=True).save(str(tmp_path / "waits"))
    done = stretto("verify", tmp_path / "waits", "--backend", "gloo")
    assert done.code == 1 and "error[E0712]" in done.out and "gloo only" not in done.out


def test_a_folder_that_is_no_program_is_refused(stretto: Command, tmp_path: Path) -> None:
    done = stretto("verify", tmp_path)
    assert (done.code, done.out) == (1, "") and "error[E0301]" in done.err


def test_passes_that_keep_values_are_equal(stretto: Command, module: Path) -> None:
    done = stretto("verify", module, "-p", SAFE)
    rows = [line.split() for line in done.out.splitlines()]
    assert (done.code, done.err) == (0, "")
    assert [(row[0], row[-1]) for row in rows[1:4]] == [(name, "equal") for name in SAFE.split(",")]
    assert done.out.splitlines()[-1] == "equal: all 3 passes left the values as they were"


def test_the_first_pass_that_changes_values_is_named_and_no_later_one_runs(stretto: Command, module: Path) -> None:
    done = stretto("verify", module, "-p", "cse,do-harm,start-collectives", "--seed", 3)
    verdicts = [[line.split()[0], line.split()[-1]] for line in done.out.splitlines()[1:4]]
    assert done.code == 1
    assert verdicts == [["cse", "equal"], ["do-harm", "differs"], ["start-collectives", "run"]]
    assert 'differs: "do-harm" is the first pass that changes values' in done.out
    report = json.loads(stretto("verify", module, "-p", "cse,do-harm,start-collectives", "--json").out)
    assert not report["passed"] and report["not_run"] == ["start-collectives"]
    assert [entry["equal"] for entry in report["passes"]] == [True, False] and report["passes"][1]["error"] > 0.01


def test_a_pass_that_leaves_an_invalid_module_differs(stretto: Command, module: Path) -> None:
    done = stretto("verify", module, "-p", "do-harm{axes=pp}")
    assert done.code == 1 and "E0505" in done.out and 'the mesh has no axis "pp"' in done.out


def test_a_pass_that_raises_keeps_its_traceback_and_says_how_to_make_it_small(stretto: Command, module: Path) -> None:
    with pytest.raises(PassFailure, match='pass "do-harm" failed: OfItsOwn: no such thing') as caught:
        stretto("verify", module, "-p", "cse,do-harm{raises=true}")
    notes = "\n".join(caught.value.__notes__)
    assert "stretto reduce" in notes and "The IR at that point is in" in notes


@pytest.mark.slow
def test_every_pass_of_a_compile_keeps_the_values(
    stretto: Command, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sources)
    done = stretto("compile", "model.py:make", "--plan", "gpt.plan", "-o", tmp_path / "p", "--dump-ir", tmp_path / "ir")
    assert done.code == 0
    pipeline = (tmp_path / "ir" / "pipeline.txt").read_text()
    done = stretto("verify", tmp_path / "ir" / "00-captured.mlir", "-p", pipeline)
    assert done.code == 0, done.out + done.err
    passes = len(pipeline.splitlines())
    same = f"equal: all {passes} passes left the values as they were, and the program computes the same"
    assert done.out.splitlines()[-1] == same
    assert [line.split()[-1] for line in done.out.splitlines() if line.startswith("  lower to program")] == ["equal"]


def test_a_module_that_needs_more_memory_says_how_much_and_which_flag(stretto: Command, module: Path) -> None:
    done = stretto("verify", module, "-p", SAFE, "--memory-cap", "16")
    assert (done.code, done.out) == (1, "") and "error[E0655]" in done.err
    assert "more than the cap of 16" in done.err and "--batch" in done.err and "Floats" not in done.err
    enough = done.err.split("--memory-cap ")[1].split()[0]
    assert stretto("verify", module, "-p", SAFE, "--memory-cap", enough).code == 0


def test_inputs_that_are_too_large_to_be_drawn_are_refused_before(stretto: Command, tmp_path: Path) -> None:
    file, huge = tmp_path / "huge.mlir", "tensor<4000000x4000000xf32>"
    file.write_text(f"func.func @main(%x: {huge}) -> {huge} {{\n  return %x : {huge}\n}}\n")
    for command in ("verify", "bisect", "reduce"):
        done = stretto(command, file, "-p", "cse")
        assert (done.code, done.out) == (1, "") and "error[E0655]" in done.err


def test_a_module_that_cannot_be_run_is_not_blamed_on_a_pass(stretto: Command, module: Path) -> None:
    module.write_text("func.func @main() { %0 = llvm.mlir.constant(1 : i32) : i32 return }")
    done = stretto("verify", module, "-p", SAFE)
    assert (done.code, done.out) == (1, "") and "error[E0652]" in done.err and "Traceback" not in done.err


def test_an_integer_input_of_unknown_range_needs_a_range(stretto: Command, module: Path) -> None:
    module.write_text(INTEGERS)
    done = stretto("verify", module, "-p", "cse")
    assert (
        (done.code, done.out) == (1, "")
        and "error[E0661]" in done.err
        and "--range 'ids=LO:HI'" in done.err
        and "IntegerRange" not in done.err
    )
    assert stretto("verify", module, "-p", "cse", "--range", "ids=2:9").code == 0
    wrong = stretto("verify", module, "-p", "cse", "--range", "idz=2:9")
    assert (wrong.code, wrong.out) == (1, "") and "error[E0662]" in wrong.err and 'did you mean "ids"' in wrong.err
    assert stretto("verify", module, "-p", "cse", "--range", "ids=9:2").code == 2


def test_wrong_usage_exits_with_2(stretto: Command, module: Path, program: Path) -> None:
    assert "name the passes with -p" in stretto("verify", module).err
    assert "a program folder is proved without it" in stretto("verify", program, "-p", SAFE).err
    assert "is no size" in stretto("verify", program, "--memory-cap", "much").err
    assert "is no size" in stretto("verify", program, "--memory-cap", "65kB").err
    assert (size("65KB"), size("1.5KiB"), size("2"), size("1 GB")) == (65_000, 1536, 2, 10**9)
    assert [stretto("verify").code, stretto("verify", module).code] == [2, 2]


SILENT = {
    "no result": ("", "return", "gives no results"),
    "zeros alone": (
        "-> tensor<4xf32>",
        """%0 = "aten.mul_scalar"(%x) {other = 0.0 : f64} : (tensor<4xf32>) -> tensor<4xf32>
           return %0 : tensor<4xf32>""",
        "every result is all zero",
    ),
}


@pytest.mark.parametrize("kind", SILENT)
def test_nothing_to_compare_is_blamed_on_no_pass(kind: str, stretto: Command, module: Path) -> None:
    results, body, why = SILENT[kind]
    module.write_text(f"func.func @main(%x: tensor<4xf32>) {results} {{ {body} }}")
    done = stretto("verify", module, "-p", "canonicalize,fold-layers")
    assert (done.code, done.err) == (3, "") and "differs" not in done.out and "first pass" not in done.out
    assert [line.split()[-1] for line in done.out.splitlines()[1:3]] == ["judged", "judged"]
    assert done.out.splitlines()[-1].startswith('not judged: of "canonicalize", ') and why in done.out
    assert stretto("verify", module, "-p", "canonicalize", "--allow-unjudged").code == 0
    report = json.loads(stretto("verify", module, "-p", "fold-layers", "--json").out)
    assert (report["verdict"], report["passed"], report["passes"][0]["verdict"]) == (
        "not judged",
        False,
        "not judged",
    )
    bisected = stretto("bisect", module, "-p", "fold-layers")
    assert bisected.code == 3 and "not judged: " in bisected.out and "first pass" not in bisected.out
    assert "error[E0420]" in stretto("reduce", module, "-p", "fold-layers").err


def test_a_module_that_names_an_op_outside_of_the_table_runs_nothing(stretto: Command, tmp_path: Path) -> None:
    """`aten.from_file` is functional by its schema, and makes the file that it maps."""
    victim = tmp_path / "victim"
    made = f'"aten.from_file_default"() {{filename = "{victim}", shared = true, size = 4 : i64}} : () -> tensor<4xf32>'
    (tmp_path / "hostile.mlir").write_text(
        f"func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {{\n  %0 = {made}\n"
        '  %1 = "aten.add_tensor"(%x, %0) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>\n'
        "  return %1 : tensor<4xf32>\n}\n"
    )
    for command in ("verify", "bisect", "reduce", "opt"):
        done = stretto(command, tmp_path / "hostile.mlir", "-p", "canonicalize,cse")
        assert not victim.exists()
        if command in ("verify", "bisect"):
            assert done.code == 1 and "E0652" in done.err + done.out and "aten.from_file.default" in done.err + done.out
