"""How quickly a command starts, counted in imports rather than seconds: it leaves out what it does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import stretto.runtime
from stretto.runtime import dynamo_imports

HEAVY = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "networkx", "transformers", "rich")
TORCH = ("torch", "torch_mlir", "numpy", "networkx", "transformers")
SCRIPT = """
import json, sys
from stretto.cli import main

try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as stop:
    code = stop.code
assert not code, code
found = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(f"loaded: {found}", file=sys.stderr)
"""


def loaded(arguments: list[str], names: tuple[str, ...]) -> str:
    """Which of these a process has imported that runs one command."""
    given = [sys.executable, "-c", SCRIPT, json.dumps(arguments), json.dumps(names)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].removeprefix("loaded: ")


@pytest.mark.parametrize(
    "command",
    ["--version", "passes --help", "passes", "passes place-arguments", "passes --json", "schedule",
     "schedule 1f1b", "schedule zb-v --json"],
)  # fmt: skip
def test_a_command_about_no_model_needs_neither_torch_nor_mlir(command: str) -> None:
    assert loaded(command.split(), TORCH) == "[]"


@pytest.mark.slow
def test_explain_of_a_program_needs_neither_the_compiler_nor_dynamo(program: Path) -> None:
    assert loaded(["explain", str(program)], ("torch_mlir", "lark", *HEAVY)) == "[]"


def test_verify_of_a_program_needs_no_dynamo(program: Path) -> None:
    assert loaded(["verify", str(program)], HEAVY) == "[]"


def test_opt_with_a_pass_of_mlir_needs_neither_dynamo_nor_sympy(program: Path) -> None:
    assert loaded(["opt", str(program / "ir.mlir"), "-p", "cse"], ("sympy", *HEAVY)) == "[]"


def test_exports_of_the_runtime_are_imported_when_they_are_used() -> None:
    script = (
        "import sys, stretto.runtime as r; assert 'torch' not in sys.modules; r.Program; assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", [stretto, stretto.runtime])
def test_every_lazy_export_is_there_and_no_other_name(package: ModuleType) -> None:
    assert set(package._HOMES) == set(package.__all__) - {"__version__"} <= set(dir(package))
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = package.absent


def test_torch_has_its_kernels_back_after_a_command() -> None:
    hidden = dynamo_imports._hidden_functions()
    before = [vars(each).get("__dynamo_disable") for each in hidden]
    with dynamo_imports.meta_kernels_without_dynamo():
        assert len(hidden) > 100 and all(hasattr(each, "__dynamo_disable") for each in hidden)
    assert [vars(each).get("__dynamo_disable") for each in hidden] == before
