"""How fast a command starts, counted in imports: what it does not need stays away."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
    ["--help", "--version", "passes --help", "passes", "passes place-arguments", "passes --json", "schedule",
     "schedule 1f1b", "schedule zb-v --json"],
)  # fmt: skip
def test_a_command_about_no_model_needs_neither_torch_nor_mlir(command: str) -> None:
    assert loaded(command.split(), TORCH) == "[]"
