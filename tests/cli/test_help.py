"""`stretto --help`: every command has a line, and nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import Command

COMMANDS = ("compile", "run", "explain", "opt", "passes", "verify", "bisect", "reduce", "diff", "schedule")
HEAVY = ("torch", "torch_mlir", "numpy", "lark", "networkx", "transformers", "rich")


def test_help_lists_every_command(stretto: Command) -> None:
    done = stretto("--help")
    assert done.code == 0
    assert [name for name in COMMANDS if f"\n    {name} " not in done.out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_own_help(command: str, stretto: Command) -> None:
    done = stretto(command, "--help")
    assert done.code == 0 and f"usage: stretto {command}" in done.out


def test_help_loads_nothing_heavy() -> None:
    script = f"""
import sys
from stretto import cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
assert not [name for name in {HEAVY!r} if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
