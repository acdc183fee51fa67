"""Running a program needs torch and numpy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .tiny_programs import linear

BLOCKED = ("torch_mlir", "lark", "networkx", "transformers", "safetensors", "rich", "triton")

SCRIPT = """
import sys

sys.modules.update(dict.fromkeys({blocked!r}))  # as where they are not installed
import stretto.runtime
program = stretto.runtime.Program.load({folder!r})
assert stretto.runtime.check(program, steps=1).passed
ours = sorted(name for name in sys.modules if name.startswith("stretto."))
for other in ("dsl", "ir", "frontend", "passes", "backends", "driver"):
    assert not any(name.startswith("stretto." + other) for name in ours), ours
print("checked")
"""


def test_the_runtime_loads_and_checks_a_program_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    linear().save(tmp_path / "p")
    script = SCRIPT.format(blocked=BLOCKED, folder=str(tmp_path / "p"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "checked\n", done.stderr
